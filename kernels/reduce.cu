// Reductions over two runs of stored elements: how alike they are.
//
// Numeric rule: csrc/reduce.h, to the bit. Eight threads share a block of 1024 elements, one for each lane; a second
// kernel adds the lanes of each block, a third the blocks of each chunk, in the promised order. The caller adds the
// chunks. (Eight neighbouring threads read eight neighbouring elements.)
//
// Compiled by CMakeLists.txt (SDS_CUDA); the tests read the PTX: tests/backends/test_ptx.py.

#include <cuda_runtime.h>

#include <algorithm>

#include "../csrc/reduce.h"
#include "launch.h"
#include "status.h"

namespace sds {
namespace cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint64_t kLanes = kReduceLanes, kBlock = kReduceBlock, kBlocks = kReduceChunk / kReduceBlock;
constexpr uint64_t kMostBlocks = 1 << 20;

// One run of a lane, a block or a chunk; Python reads those of the chunks (gpu/reductions.py).
struct Part {
    double sums[4];                // dot, aa, bb, dd
    double peaks[3];               // of |a|, |b|, |a − b|
    unsigned long long counts[3];  // non-finite in a, in b, equal
};
static_assert(sizeof(Part) == kPartBytes, "launch.h says how large a part is");

__device__ double load_double(const uint8_t* p, Element element) {
#define SDS_LOAD(word, Stored) \
    case Element::word: return Stored::load(*reinterpret_cast<const Stored::Code*>(p));
#define SDS_LOAD_INTEGER(word, type) \
    case Element::word: return static_cast<double>(*reinterpret_cast<const type*>(p));
    switch (element) {
        SDS_NARROW_DTYPES(SDS_LOAD)
        SDS_INTEGERS(SDS_LOAD_INTEGER)
        case Element::f64: break;
    }
#undef SDS_LOAD
#undef SDS_LOAD_INTEGER
    return *reinterpret_cast<const double*>(p);
}

__device__ uint64_t load_code(const uint8_t* p, size_t size) {
    switch (size) {
        case 8: return *reinterpret_cast<const uint64_t*>(p);
        case 4: return *reinterpret_cast<const uint32_t*>(p);
        case 2: return *reinterpret_cast<const uint16_t*>(p);
        default: return *p;
    }
}

__device__ void take(double& peak, double x) {
    x = x < 0 ? -x : x;
    peak = x > peak ? x : peak;
}

// Everything but the sums, whose order matters.
__device__ void take_unordered(Part& to, const Part& from) {
    for (int k = 0; k < 3; ++k) {
        take(to.peaks[k], from.peaks[k]);
        to.counts[k] += from.counts[k];
    }
}

__global__ void reduce_lanes(const uint8_t* a, Element a_element, const uint8_t* b, Element b_element, uint64_t count,
                             Part* lanes) {
    const size_t a_size = size_of(a_element), b_size = size_of(b_element);
    const uint64_t total = (count + kBlock - 1) / kBlock * kLanes;
    for (uint64_t lane = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; lane < total;
         lane += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const uint64_t first = lane / kLanes * kBlock, end = first + kBlock < count ? first + kBlock : count;
        Part part{};
        for (uint64_t i = first + lane % kLanes; i < end; i += kLanes) {
            double x = load_double(a + i * a_size, a_element), y = load_double(b + i * b_size, b_element);
            part.counts[2] += a_element == b_element
                                  ? load_code(a + i * a_size, a_size) == load_code(b + i * a_size, a_size)
                                  : x == y;
            const bool x_finite = x - x == 0, y_finite = y - y == 0;
            part.counts[0] += !x_finite;
            part.counts[1] += !y_finite;
            if (!(x_finite && y_finite)) x = y = 0;
            const double difference = x - y;
            part.sums[0] = part.sums[0] + x * y;
            part.sums[1] = part.sums[1] + x * x;
            part.sums[2] = part.sums[2] + y * y;
            part.sums[3] = part.sums[3] + difference * difference;
            take(part.peaks[0], x);
            take(part.peaks[1], y);
            take(part.peaks[2], difference);
        }
        lanes[lane] = part;
    }
}

__global__ void reduce_blocks(const Part* lanes, uint64_t count, Part* blocks) {
    for (uint64_t block = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; block < count;
         block += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const Part* l = lanes + block * kLanes;
        Part part{};
        for (int k = 0; k < 4; ++k) {
            part.sums[k] = ((l[0].sums[k] + l[4].sums[k]) + (l[2].sums[k] + l[6].sums[k])) +
                           ((l[1].sums[k] + l[5].sums[k]) + (l[3].sums[k] + l[7].sums[k]));
        }
        for (uint64_t lane = 0; lane < kLanes; ++lane) take_unordered(part, l[lane]);
        blocks[block] = part;
    }
}

__global__ void reduce_chunks(const Part* blocks, uint64_t count, Part* chunks) {
    const uint64_t chunk = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x;
    if (chunk >= (count + kBlocks - 1) / kBlocks) return;
    const uint64_t end = (chunk + 1) * kBlocks < count ? (chunk + 1) * kBlocks : count;
    Part part{};
    for (uint64_t block = chunk * kBlocks; block < end; ++block) {
        for (int k = 0; k < 4; ++k) part.sums[k] = part.sums[k] + blocks[block].sums[k];
        take_unordered(part, blocks[block]);
    }
    chunks[chunk] = part;
}

// ---- products

__device__ float load_float(uint64_t at, uint64_t element, uint64_t i) {
#define SDS_LOAD(word, Stored) \
    case Element::word: return Stored::load(reinterpret_cast<const Stored::Code*>(at)[i]);
    switch (static_cast<Element>(element)) {
        SDS_NARROW_DTYPES(SDS_LOAD)
        default: return 0;  // refused before
    }
#undef SDS_LOAD
}

__device__ double load_term(const Term& term, uint64_t i) {
    if (term.at == 0) return 1;
    const float x = load_float(term.at, term.element, i);
    return term.less == 0 ? x : x - load_float(term.less, term.less_element, i);
}

__global__ void product_lanes(const Term* terms, uint64_t products, uint64_t count, double* lanes) {
    const uint64_t each = (count + kBlock - 1) / kBlock * kLanes;
    for (uint64_t at = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; at < products * each;
         at += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const Term x = terms[at / each * 2], y = terms[at / each * 2 + 1];
        const uint64_t lane = at % each;
        const uint64_t first = lane / kLanes * kBlock, end = first + kBlock < count ? first + kBlock : count;
        double sum = 0;
        for (uint64_t i = first + lane % kLanes; i < end; i += kLanes) sum = sum + load_term(x, i) * load_term(y, i);
        lanes[at] = sum;
    }
}

__global__ void product_blocks(const double* lanes, uint64_t count, double* blocks) {
    for (uint64_t block = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; block < count;
         block += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const double* l = lanes + block * kLanes;
        blocks[block] = ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]));
    }
}

// `each`: the blocks of one product; of the last chunk of each there may be fewer.
__global__ void product_chunks(const double* blocks, uint64_t products, uint64_t each, double* chunks) {
    const uint64_t chunk_count = (each + kBlocks - 1) / kBlocks;
    for (uint64_t at = blockIdx.x * static_cast<uint64_t>(blockDim.x) + threadIdx.x; at < products * chunk_count;
         at += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
        const uint64_t first = at % chunk_count * kBlocks, end = first + kBlocks < each ? first + kBlocks : each;
        double sum = 0;
        for (uint64_t block = first; block < end; ++block) sum = sum + blocks[at / chunk_count * each + block];
        chunks[at] = sum;
    }
}

template <class... Parameters>
void start(void (*kernel)(Parameters...), uint64_t threads, void* stream,
           const std::common_type_t<Parameters>&... parameters) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(std::min((threads + kThreads - 1) / kThreads, kMostBlocks)));
    config.blockDim = dim3(kThreads);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, parameters...));
}

}  // namespace

uint64_t reduce_chunk_count(uint64_t count) { return (count + kReduceChunk - 1) / kReduceChunk; }

uint64_t reduce_scratch_bytes(uint64_t count) { return (count + kBlock - 1) / kBlock * (kLanes + 1) * sizeof(Part); }

void enqueue_reduce(const ReduceLaunch& launch) {
    if (launch.count == 0) return;
    if (launch.a % size_of(launch.a_element) != 0 || launch.b % size_of(launch.b_element) != 0)
        throw Error(Code::invalid, "an input is off its dtype's alignment");
    const uint64_t blocks = (launch.count + kBlock - 1) / kBlock;
    if (reduce_chunk_count(launch.count) > kMostBlocks * kThreads) throw Error(Code::invalid, "too many elements");
    Part* const lanes = static_cast<Part*>(launch.scratch);
    Part* const sums = lanes + blocks * kLanes;
    start(reduce_lanes, blocks * kLanes, launch.stream, reinterpret_cast<const uint8_t*>(launch.a), launch.a_element,
          reinterpret_cast<const uint8_t*>(launch.b), launch.b_element, launch.count, lanes);
    start(reduce_blocks, blocks, launch.stream, lanes, blocks, sums);
    start(reduce_chunks, reduce_chunk_count(launch.count), launch.stream, sums, blocks, static_cast<Part*>(launch.out));
}

uint64_t product_scratch_bytes(uint64_t products, uint64_t count) {
    return products * ((count + kBlock - 1) / kBlock) * (kLanes + 1) * sizeof(double);
}

void enqueue_products(const ProductLaunch& launch) {
    if (launch.count == 0 || launch.products == 0) return;
    const uint64_t each = (launch.count + kBlock - 1) / kBlock, blocks = launch.products * each;
    double* const lanes = static_cast<double*>(launch.scratch);
    double* const sums = lanes + blocks * kLanes;
    start(product_lanes, blocks * kLanes, launch.stream, launch.terms, launch.products, launch.count, lanes);
    start(product_blocks, blocks, launch.stream, lanes, blocks, sums);
    start(product_chunks, launch.products * reduce_chunk_count(launch.count), launch.stream, sums, launch.products,
          each, static_cast<double*>(launch.out));
}

}  // namespace cuda
}  // namespace sds
