// What one core can do at most: multiply-adds of bytes with all operands in registers, and reading memory. Both return
// what they did; the caller takes the time of its thread.
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>

#define REPEAT_4(x) x x x x

// Twelve sums hide the latency. Returns multiply-adds.
__attribute__((target("avx2"))) static double avx2(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++)
        __asm__ volatile(
#define STEP(n, t) "vpmaddubsw %%ymm12, %%ymm13, %%ymm" t "\n\tvpaddw %%ymm" t ", %%ymm" n ", %%ymm" n "\n\t"
            REPEAT_4(STEP("0", "14") STEP("1", "15") STEP("2", "14") STEP("3", "15") STEP("4", "14") STEP("5", "15")
                     STEP("6", "14") STEP("7", "15") STEP("8", "14") STEP("9", "15") STEP("10", "14") STEP("11", "15"))
            ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                "xmm13", "xmm14", "xmm15");
#undef STEP
    return 4.0 * 12 * 32 * rounds;
}

#define VNNI(prefix, r) \
    REPEAT_4(prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "0\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "1\n\t" \
             prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "2\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "3\n\t" \
             prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "4\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "5\n\t" \
             prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "6\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "7\n\t" \
             prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "8\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "9\n\t" \
             prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "10\n\t" prefix "vpdpbusd %%" r "12, %%" r "13, %%" r "11\n\t")

static double avx_vnni(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++)
        __asm__ volatile(VNNI("%{vex%} ", "ymm") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                         "xmm9", "xmm10", "xmm11", "xmm12", "xmm13");
    return 4.0 * 12 * 32 * rounds;
}

static double avx512_vnni(int64_t rounds) {
    for (int64_t i = 0; i < rounds; i++)
        __asm__ volatile(VNNI("", "zmm") ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                         "xmm10", "xmm11", "xmm12", "xmm13");
    return 4.0 * 12 * 64 * rounds;
}

#if defined(__linux__)
struct alignas(64) tile_shapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// The process must have asked Linux for tiles: our library does.
static double avx512_amx(int64_t rounds) {
    static const tile_shapes shapes;
    __asm__ volatile("ldtilecfg %0" : : "m"(shapes));
    for (int64_t i = 0; i < rounds; i++)
        __asm__ volatile("tdpbssd %tmm6, %tmm4, %tmm0\n\ttdpbssd %tmm7, %tmm4, %tmm1\n\t"
                         "tdpbssd %tmm6, %tmm5, %tmm2\n\ttdpbssd %tmm7, %tmm5, %tmm3");
    __asm__ volatile("tilerelease");
    return 4.0 * 16 * 16 * 64 * rounds;
}
#endif

__attribute__((target("avx2"))) static uint64_t read_all(const char * bytes, size_t n_bytes) {
    __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
    for (size_t i = 0; i + 128 <= n_bytes; i += 128) {
        _mm_prefetch(bytes + i + 2048, _MM_HINT_T0);
        _mm_prefetch(bytes + i + 2112, _MM_HINT_T0);
        a = _mm256_xor_si256(a, _mm256_loadu_si256((const __m256i *) (bytes + i)));
        b = _mm256_xor_si256(b, _mm256_loadu_si256((const __m256i *) (bytes + i + 32)));
        c = _mm256_xor_si256(c, _mm256_loadu_si256((const __m256i *) (bytes + i + 64)));
        d = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i *) (bytes + i + 96)));
    }
    a = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
    uint64_t words[4];
    memcpy(words, &a, sizeof words);
    return words[0] ^ words[1] ^ words[2] ^ words[3];
}

extern "C" double multiply_adds(const char * instructions, int64_t rounds) {
    return !strcmp(instructions, "avx2")          ? avx2(rounds)
           : !strcmp(instructions, "avx-vnni")    ? avx_vnni(rounds)
           : !strcmp(instructions, "avx512-vnni") ? avx512_vnni(rounds)
#if defined(__linux__)
           : !strcmp(instructions, "avx512-amx")  ? avx512_amx(rounds)
#endif
                                                  : 0;
}
#else
static uint64_t read_all(const char * bytes, size_t n_bytes) {
    uint64_t sum = 0;
    for (size_t i = 0; i + 8 <= n_bytes; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        sum ^= word;
    }
    return sum;
}

extern "C" double multiply_adds(const char *, int64_t) {
    return 0;
}
#endif

extern "C" uint64_t read_memory(const char * bytes, size_t n_bytes) {
    return read_all(bytes, n_bytes);
}
