/* The loops for x86-64 processors with AVX2. GCC only: Clang doesn't know this pragma. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx2,bmi2,fma")
#define KERNEL(name) name##_3
#define WIDTH 8
#include "loops.h"
#endif
