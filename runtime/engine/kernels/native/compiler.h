// What compilers spell in different ways
#pragma once

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 32")
#define UNROLL_4 _Pragma("GCC unroll 4")
#else
#define ALWAYS_INLINE static __forceinline
#define UNROLL
#define UNROLL_4
#endif
