// The target that every machine has.
#include <cmath>
#include <cstring>
#include <utility>

#include "cpu.h"
#include "stages.h"

namespace sds {

namespace scalar {
#include "lanes/scalar.h"
#include "loops.inl.h"
}  // namespace scalar

namespace {
bool always() { return true; }
}  // namespace

namespace scalar {
extern const Target target = {loops, "scalar", always};
}

}  // namespace sds
