// What this processor can do, and lets programs do
#pragma once

bool processor_has_avx2(void);         // with FMA and F16C
bool processor_has_avx_vnni(void);     // with those of AVX2
bool processor_has_avx512_vnni(void);  // with F, BW, DQ and VL, and those of AVX2
bool processor_has_avx512_vbmi(void);  // with those of AVX-512-VNNI
bool processor_has_amx_int8(void);     // with those of AVX-512-VBMI; asks Linux for the tiles' registers
bool processor_has_dotprod(void);
bool processor_has_i8mm(void);         // with dotprod
