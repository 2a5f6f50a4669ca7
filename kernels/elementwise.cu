// The CUDA loop: load → formula → round → store, over rows (tensors, or stretches of them) of equal dtypes.
//
// Numeric rule: as on the CPU (csrc/elementwise.inl.h). The formulas are those of csrc/formulas.h, evaluated in float32
// or float64 with every operation rounded by itself (compile with --fmad=false; no flush to zero, exact division); a
// pack whose results show a NaN, an Inf or an overflow is done again, element by element, by the careful store of
// csrc/dtypes.h.
//
// Hot sums have a kernel each, here, with everything in registers; steps.cuh has the kernel for any other program.
// rows.cuh says how rows are cut into packs and tiles.
//
// Compiled by CMakeLists.txt (SDS_CUDA); the tests read the PTX: tests/backends/test_ptx.py.

#include <cuda_runtime.h>
#include <math.h>

#include "launch.h"
#include "packs.cuh"
#include "rows.cuh"
#include "steps.cuh"

namespace sds {
namespace cuda {
namespace {

constexpr int kThreads = 256;  // of a block of the fused kernels

// ---- the sums of csrc/formulas.h: everything in registers

constexpr int kFusedWords = 448;
template <class Formula>
using FusedTable = Table<Formula::inputs, kFusedWords>;
template <class Formula, class T>
struct Constants {
    T c[Formula::constants + 1];
};

template <class Formula, class T>
__device__ __noinline__ void fused_one(const FusedTable<Formula>& table, const Constants<Formula, T>& constants,
                                       const uint64_t* row, int number, uint64_t i) {
    T x[Formula::inputs];
    bool finite = true;
#pragma unroll
    for (int k = 0; k < Formula::inputs; ++k) {
        const DType dtype = static_cast<DType>(table.in[k]);
        x[k] = load_one<T>(reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + i * size_of(dtype), dtype);
        finite &= magnitude_bits(x[k]) < Bits<T>::inf;
    }
    const DType out = static_cast<DType>(table.out);
    store_one(reinterpret_cast<uint8_t*>(row[0]) + i * size_of(out), out, Formula::apply(x, constants.c), finite,
              table.overflow, counts_of(table, number));
}

template <class Formula>
constexpr int kPacksAThread = Formula::inputs == 1 ? 4 : 2;  // enough bytes under way, few enough registers

template <class Formula, class T, int V>
__global__ void __launch_bounds__(kThreads)
    fused(const __grid_constant__ FusedTable<Formula> table, const __grid_constant__ Constants<Formula, T> constants) {
    constexpr int kInputs = Formula::inputs, kPacks = kPacksAThread<Formula>;
    int size[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) size[k] = static_cast<int>(size_of(static_cast<DType>(table.in[k])));
    const DType out = static_cast<DType>(table.out);
    const int out_size = static_cast<int>(size_of(out));
    for (uint32_t tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
        const Place place = place_of(table, tile, kThreads * kPacks);
        const uint64_t* row = place.row;
        const uint64_t count = row[1], head = row[2] >> 32, aligned = row[3];
        const uint64_t packs = (count - head) / V;
        uint4 raw[kPacks][kInputs];
#pragma unroll
        for (int u = 0; u < kPacks; ++u) {
            const uint64_t pack = place.packs_before + u * kThreads + threadIdx.x;
            if (pack >= packs) continue;
#pragma unroll
            for (int k = 0; k < kInputs; ++k) {
                const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]);
                raw[u][k] = load_pack<V>(from + (head + pack * V) * size[k], size[k], aligned >> k & 1);
            }
        }
#pragma unroll
        for (int u = 0; u < kPacks; ++u) {
            const uint64_t pack = place.packs_before + u * kThreads + threadIdx.x;
            if (pack >= packs) continue;
            T x[kInputs][V], y[V];
#pragma unroll
            for (int k = 0; k < kInputs; ++k) widen<V>(raw[u][k], static_cast<DType>(table.in[k]), x[k]);
            typename Bits<T>::type peak = 0;
#pragma unroll
            for (int e = 0; e < V; ++e) {
                T each[kInputs];
#pragma unroll
                for (int k = 0; k < kInputs; ++k) each[k] = x[k][e];
                y[e] = Formula::apply(each, constants.c);
                const auto bits = magnitude_bits(y[e]);
                peak = bits > peak ? bits : peak;
            }
            const uint64_t first = head + pack * V;
            if (peak < table.careful) {
                store_pack<V>(reinterpret_cast<uint8_t*>(row[0]) + first * out_size, round_to<V>(y, out), out_size);
            } else {
                for (int e = 0; e < V; ++e) fused_one<Formula, T>(table, constants, row, place.number, first + e);
            }
        }
        if (place.packs_before == 0) {  // the row's first tile does its head and tail
            const uint64_t tail = head + packs * V;
            if (threadIdx.x < head) fused_one<Formula, T>(table, constants, row, place.number, threadIdx.x);
            if (threadIdx.x < count - tail)
                fused_one<Formula, T>(table, constants, row, place.number, tail + threadIdx.x);
        }
    }
}

// ---- the host's side

template <class Formula, class T, int V>
void enqueue_fused(const Launch& launch, const std::vector<Row>& rows) {
    FusedTable<Formula> table;
    Constants<Formula, T> constants{};
    for (int k = 0; k < Formula::constants; ++k) constants.c[k] = launch.numbers.of(T())[k];
    in_tables(launch, rows, table, kFusedWords, V, kThreads * kPacksAThread<Formula>, [&](unsigned blocks) {
        start(fused<Formula, T, V>, blocks, kThreads, 0, launch.stream, table, constants);
    });
}

struct FusedStarter {  // finds the formula by its number
    const Launch& launch;
    const std::vector<Row>& rows;
    bool wide;
    int v, next = 0;
    template <class Formula>
    void operator()(Formula) {
        if (next++ != launch.program.fused) return;
        if (wide) return enqueue_fused<Formula, double, 2>(launch, rows);
        if (v == 4) return enqueue_fused<Formula, float, 4>(launch, rows);
        if (v == 8) return enqueue_fused<Formula, float, 8>(launch, rows);
        enqueue_fused<Formula, float, 16>(launch, rows);
    }
};

}  // namespace

std::string unsupported(const Program& program, const std::vector<DType>&, DType) {
    if (program.fused_sum()) return "";
    if (program.inputs < 1 || program.inputs > kStepInputs) return "it takes more than 32 inputs";
    size_t packed_steps = 0;
    for (const Step& step : program.steps) packed_steps += arity(step.op) > 2 ? 2 : 1;
    if (packed_steps > kMostSteps) return "it has more than 160 operations";
    if (program.constants > static_cast<int>(kMostConstants)) return "it has more than 48 numbers";
    if (slots_of(program) > kMostSlots) return "it needs too many intermediate results";
    return "";
}

void enqueue(const Launch& launch, const std::vector<Row>& all) {
    const std::string why = unsupported(launch.program, launch.in, launch.out);
    if (!why.empty()) throw Error(Code::invalid, "the CUDA kernels cannot evaluate this formula: " + why);
    if (launch.in.size() != static_cast<size_t>(launch.program.inputs))
        throw Error(Code::invalid, "wrong operand count");
    if (all.empty()) return;
    const bool wide = is_wide(launch);
    const int v = wide ? 2 : pack_elements(launch);
    if (launch.program.fused_sum() && (wide || v >= 4)) {
        FusedStarter starter{launch, all, wide, v};
        formulas::for_each_sum(starter);
    } else if (wide) {
        enqueue_steps<double, 2>(launch, all, true);
    } else if (v == 2) {
        enqueue_steps<float, 2>(launch, all, false);
    } else if (v >= 8 && slots_of(launch.program) * Slots<float, 8>::bytes * kStepThreads <= kSharedBytes) {
        enqueue_steps<float, 8>(launch, all, false);
    } else {
        enqueue_steps<float, 4>(launch, all, false);
    }
}

}  // namespace cuda
}  // namespace sds
