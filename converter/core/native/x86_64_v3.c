/* The loops for x86-64 processors with AVX2; Clang would take another way to say so. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,bmi2,fma")
#define KERNEL(name) name##_3
#define WIDTH 8
#include "loops.h"
#endif
