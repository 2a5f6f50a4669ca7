// The kernels on memory: what the library's `apply` runs on arrays and tensors.
#pragma once

#include <string>
#include <vector>

#include "stages.h"
#include "targets.h"

namespace sds {

// A tensor's elements from each operand to `out`, which may be one of the operands. `threads` 0: as many as there are
// CPUs. (Of a program's stages those that sum over the whole tensor are shared out too.)
Tally apply(const Program& program, const Numbers& numbers, const std::vector<Operand>& operands, uint8_t* out,
            DType out_dtype, Extents extents, Overflow policy, unsigned threads, const std::string& target);

}  // namespace sds
