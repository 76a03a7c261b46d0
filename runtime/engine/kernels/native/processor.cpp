// Which instruction sets the processor has. On x86 the operating system must also save their registers (XCR0).
#include "processor.h"
#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

struct registers {
    uint32_t eax, ebx, ecx, edx;
};

registers cpuid(uint32_t leaf, uint32_t subleaf) {
    registers found = {0, 0, 0, 0};
#if defined(_MSC_VER)
    int values[4];
    __cpuidex(values, 0, 0);
    if ((uint32_t) values[0] < leaf)
        return found;
    __cpuidex(values, (int) leaf, (int) subleaf);
    found = {(uint32_t) values[0], (uint32_t) values[1], (uint32_t) values[2], (uint32_t) values[3]};
#else
    __get_cpuid_count(leaf, subleaf, &found.eax, &found.ebx, &found.ecx, &found.edx);
#endif
    return found;
}

uint64_t saved_registers(void) {
    if (!(cpuid(1, 0).ecx >> 27 & 1))  // OSXSAVE
        return 0;
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (uint64_t) high << 32;
#endif
}

constexpr uint64_t YMM = 1 << 1 | 1 << 2, ZMM = YMM | 1 << 5 | 1 << 6 | 1 << 7;

bool has_all(uint32_t flags, uint32_t wanted) {
    return (flags & wanted) == wanted;
}

}  // namespace

bool processor_has_avx2(void) {
    const uint32_t fma_avx_f16c = 1u << 12 | 1u << 28 | 1u << 29;
    return has_all(cpuid(1, 0).ecx, fma_avx_f16c) && (cpuid(7, 0).ebx >> 5 & 1) && (saved_registers() & YMM) == YMM;
}

bool processor_has_avx_vnni(void) {
    return processor_has_avx2() && cpuid(7, 0).eax >= 1 && (cpuid(7, 1).eax >> 4 & 1);
}

bool processor_has_avx512_vnni(void) {
    const registers seven = cpuid(7, 0);
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    return processor_has_avx2() && has_all(seven.ebx, f_dq_bw_vl) && (seven.ecx >> 11 & 1) &&
           (saved_registers() & ZMM) == ZMM;
}

bool processor_has_avx512_vbmi(void) {
    return processor_has_avx512_vnni() && (cpuid(7, 0).ecx >> 1 & 1);
}

// Linux lets a process use tiles when it has asked once: https://docs.kernel.org/arch/x86/xstate.html
bool processor_has_amx_int8(void) {
#if defined(__linux__)
    const uint32_t tile_int8 = 1u << 24 | 1u << 25;
    const uint64_t tiles = 1 << 17 | 1 << 18;
    const long request_permission = 0x1023, tile_data = 18;
    return processor_has_avx512_vbmi() && has_all(cpuid(7, 0).edx, tile_int8) && (saved_registers() & tiles) == tiles &&
           syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}

bool processor_has_dotprod(void) { return false; }
bool processor_has_i8mm(void) { return false; }

#else

bool processor_has_avx2(void) { return false; }
bool processor_has_avx_vnni(void) { return false; }
bool processor_has_avx512_vnni(void) { return false; }
bool processor_has_avx512_vbmi(void) { return false; }
bool processor_has_amx_int8(void) { return false; }

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

bool processor_has_dotprod(void) {
    return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
}

bool processor_has_i8mm(void) {
    return processor_has_dotprod() && (getauxval(AT_HWCAP2) >> 13 & 1);  // HWCAP2_I8MM
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

static bool has_feature(const char * name) {
    int value = 0;
    size_t bytes = sizeof value;
    return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value;
}

bool processor_has_dotprod(void) { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool processor_has_i8mm(void) { return processor_has_dotprod() && has_feature("hw.optional.arm.FEAT_I8MM"); }

#else

bool processor_has_dotprod(void) { return false; }
bool processor_has_i8mm(void) { return false; }

#endif
#endif
