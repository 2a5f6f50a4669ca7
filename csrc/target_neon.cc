// AArch64, every one of which has NEON.
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "stages.h"

#ifdef SDS_ARM

#include <arm_neon.h>

namespace sds {

namespace neon {
#include "lanes/neon.h"
#include "loops.inl.h"
}  // namespace neon

namespace {
bool always() { return true; }
}  // namespace

namespace neon {
extern const Target target = {loops, "neon", always};
}

}  // namespace sds

#endif
