/* The loops for x86-64 processors with AVX-512. GCC only: Clang doesn't know this pragma. */

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,bmi2,fma,prefer-vector-width=512")
#define KERNEL(name) name##_4
#define WIDTH 16
#include "loops.h"
#endif
