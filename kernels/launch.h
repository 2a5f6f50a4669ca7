// The CUDA kernels as host code sees them: a Launch is one formula over rows of equal dtypes, and becomes as few
// kernel launches as its rows need. Plain C++: no CUDA header is needed to include this.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../csrc/program.h"

namespace sds {
namespace cuda {

// A failed CUDA call. Python acts on `code`: "no_memory", "lost" (the device is unusable from now on) or
// "failed".
struct CudaError : std::runtime_error {
    CudaError(const char* code, const std::string& message) : std::runtime_error(message), code(code) {}
    const char* code;
};

struct Row {  // one tensor: `count` elements; the pointers are device addresses, aligned to their elements
    uint64_t out;
    uint64_t count;
    const uint64_t* in;  // program.inputs of them
};

struct Launch {
    const Program& program;
    const Numbers& numbers;
    std::vector<DType> in;
    DType out;
    Overflow overflow;
    uint64_t* counts;  // two numbers a row (non-finite, overflow), added to; null: not counted
    void* stream;
};

// Why the kernels cannot evaluate it; empty when they can.
std::string unsupported(const Program& program, const std::vector<DType>& in, DType out);

// Enqueues the rows on launch.stream of the current device and returns. Throws CudaError, or Error for a bad row.
void enqueue(const Launch& launch, const std::vector<Row>& rows);

// Reductions of two tensors (csrc/reduce.h). `out` receives kPartBytes for every chunk of 2^18 elements: the four sums
// and three maxima as float64, the three counts as uint64.
constexpr uint64_t kPartBytes = 80;
struct ReduceLaunch {
    uint64_t a, b;  // device addresses, aligned to their elements
    Element a_element, b_element;
    uint64_t count;
    void* scratch;  // reduce_scratch_bytes(count)
    void* out;
    void* stream;
};
uint64_t reduce_chunk_count(uint64_t count);
uint64_t reduce_scratch_bytes(uint64_t count);
void enqueue_reduce(const ReduceLaunch& launch);

// What is multiplied: a stored input in a narrow dtype, or that without another one, rounded to float32. No address:
// ones.
struct Term {
    uint64_t at, less;  // device addresses, aligned to their elements; no `less`: nothing is subtracted
    uint64_t element, less_element;
};
static_assert(sizeof(Term) == 32, "Python writes them as four uint64");

// Σ x·y of each product, two of `terms`: `out` receives for each a float64 for every chunk, one product after the
// other.
struct ProductLaunch {
    const Term* terms;  // on the device
    uint64_t products;
    uint64_t count;
    void* scratch;  // product_scratch_bytes(products, count)
    void* out;
    void* stream;
};
uint64_t product_scratch_bytes(uint64_t products, uint64_t count);
void enqueue_products(const ProductLaunch& launch);

}  // namespace cuda
}  // namespace sds
