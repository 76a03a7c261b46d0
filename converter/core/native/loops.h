/* The loops where a conversion spends its time. Each gives the same bytes as the numpy code beside its call, which
   explains the rule; the tests compare both. Python calls them through ctypes, which releases the GIL.

   A function returns a count or a magnitude, as its comment says, else 0. Arrays are contiguous and hold `n_groups`
   groups of `group` values. Floats are words of the kind in which they are stored. Build with -ffp-contract=off: a
   fused multiply-add would round differently. The compiler is GCC or Clang.

   One file per processor level includes this header and defines KERNEL(name), a function's name at that level, and
   WIDTH, the number of 32-bit values in a register. */

#include "words.h"
#include "methods.h"
#include "grids.h"
#include "packings.h"
#include "codecs.h"
#include "uniform.h"
#include "known_grid.h"
#include "k_quants.h"
#include "q4_k.h"
#include "nvfp4.h"
#include "weighted_fit.h"
