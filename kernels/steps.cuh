// The kernel for any program: its steps, over slots in shared memory, and the host's side of it.
//
// Numeric rule: that of elementwise.cu, for every step. Rows and packs are those of rows.cuh.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include "launch.h"
#include "packs.cuh"
#include "rows.cuh"

extern __shared__ uint4 sds_slots[];  // of any_steps, as many as the launch asks for

namespace sds {
namespace cuda {
namespace {

constexpr int kStepThreads = 128;  // of the kernel for any program, fewer when it needs more slots
constexpr int kSharedBytes = 48 << 10;
constexpr int kMostSteps = 160, kMostConstants = 48, kMostSlots = 96, kStepInputs = 32, kStepWords = 216;
constexpr uint16_t kConstantBit = 0x8000;

struct PackedStep {
    uint8_t op, to;  // slot
    uint16_t a, b;   // slot, or constant | kConstantBit
};
struct Steps {
    int count;
    uint16_t result;
    PackedStep step[kMostSteps];
    double constants[kMostConstants];
};
using StepTable = Table<kStepInputs, kStepWords>;
static_assert(sizeof(StepTable) + sizeof(Steps) <= 4096, "kernel parameters end at 4 KB");

// This thread's slots: V numbers each, as planes of 16 bytes, in which a thread's neighbour is the next thread's.
template <class T, int V>
struct Slots {
    static constexpr int planes = (V * static_cast<int>(sizeof(T)) + 15) / 16, a_plane = V / planes;
    static constexpr int bytes = planes * 16;
    uint4* mine;

    __device__ uint4* at(int slot, int plane) const { return mine + (slot * planes + plane) * blockDim.x; }
    __device__ void read(int slot, T* to) const {
#pragma unroll
        for (int p = 0; p < planes; ++p) {
            const uint4 raw = *at(slot, p);
            memcpy(to + p * a_plane, &raw, a_plane * sizeof(T));
        }
    }
    __device__ void write(int slot, const T* from) const {
#pragma unroll
        for (int p = 0; p < planes; ++p) {
            uint4 raw = {0, 0, 0, 0};
            memcpy(&raw, from + p * a_plane, a_plane * sizeof(T));
            *at(slot, p) = raw;
        }
    }
};

template <class T, int V>
__device__ void operate(Op op, const T* a, const T* b, const T* c, T* y) {
#define SDS_EACH(expression)                                             \
    _Pragma("unroll") for (int e = 0; e < V; ++e) { y[e] = expression; } \
    break
    switch (op) {
        case Op::add: SDS_EACH(a[e] + b[e]);
        case Op::sub: SDS_EACH(a[e] - b[e]);
        case Op::mul: SDS_EACH(a[e] * b[e]);
        case Op::div: SDS_EACH(a[e] / b[e]);
        case Op::neg: SDS_EACH(-a[e]);
        case Op::abs: SDS_EACH(a[e] < 0 ? -a[e] : a[e] + T(0));
        case Op::minimum: SDS_EACH(a[e] < b[e] || a[e] != a[e] ? a[e] : b[e]);
        case Op::maximum: SDS_EACH(a[e] > b[e] || a[e] != a[e] ? a[e] : b[e]);
        case Op::lt: SDS_EACH(a[e] < b[e] ? T(1) : T(0));
        case Op::le: SDS_EACH(a[e] <= b[e] ? T(1) : T(0));
        case Op::gt: SDS_EACH(a[e] > b[e] ? T(1) : T(0));
        case Op::ge: SDS_EACH(a[e] >= b[e] ? T(1) : T(0));
        case Op::eq: SDS_EACH(a[e] == b[e] ? T(1) : T(0));
        case Op::ne: SDS_EACH(a[e] != b[e] ? T(1) : T(0));
        case Op::sqrt: SDS_EACH(sqrt(a[e]));
        case Op::sign: SDS_EACH(a[e] > 0 ? T(1) : a[e] < 0 ? T(-1) : a[e] == 0 ? T(0) : a[e]);
        case Op::copysign: SDS_EACH(functions::lane_copysign(a[e], b[e]));
        case Op::pow: SDS_EACH(functions::lane_pow(a[e], b[e]));
        case Op::floor: SDS_EACH(floor(a[e]));
        case Op::exp: SDS_EACH(functions::lane_exp(a[e]));
        case Op::log: SDS_EACH(functions::lane_log(a[e]));
        case Op::where: SDS_EACH(a[e] != 0 ? b[e] : c[e]);
        case Op::fma: SDS_EACH(fma(a[e], b[e], c[e]));
        case Op::kCount: break;
    }
#undef SDS_EACH
}

// The program on the inputs in this thread's slots.
template <class T, int V>
__device__ void run_steps(const Steps& steps, Slots<T, V> slots, T* y) {
    const auto read = [&](uint16_t at, T* to) {
        if (at & kConstantBit) {
            const T c = static_cast<T>(steps.constants[at & ~kConstantBit]);  // float32: rounded by the host already
#pragma unroll
            for (int e = 0; e < V; ++e) to[e] = c;
        } else {
            slots.read(at, to);
        }
    };
    for (int s = 0; s < steps.count; ++s) {
        const PackedStep step = steps.step[s];
        T a[V], b[V], c[V], to[V];
        read(step.a, a);
        read(step.b, b);
        if (arity(static_cast<Op>(step.op)) > 2) read(steps.step[++s].a, c);  // it takes two places
        operate<T, V>(static_cast<Op>(step.op), a, b, c, to);
        slots.write(step.to, to);
    }
    read(steps.result, y);
}

// Up to V elements from `first` on, one by one in and out.
template <class T, int V>
__device__ __noinline__ void steps_singly(const StepTable& table, const Steps& steps, Slots<T, V> slots,
                                          const uint64_t* row, int number, uint64_t first, int n) {
    const DType out = static_cast<DType>(table.out);
    bool finite[V];
    for (int e = 0; e < V; ++e) finite[e] = true;
    for (int k = 0; k < table.inputs; ++k) {
        const DType dtype = static_cast<DType>(table.in[k]);
        const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + first * size_of(dtype);
        T x[V];
        for (int e = 0; e < V; ++e) {
            x[e] = e < n ? load_one<T>(from + e * size_of(dtype), dtype) : T(0);
            finite[e] &= k >= table.own || magnitude_bits(x[e]) < Bits<T>::inf;
        }
        slots.write(k, x);
    }
    T y[V];
    run_steps<T, V>(steps, slots, y);
    for (int e = 0; e < n; ++e) {
        store_one(reinterpret_cast<uint8_t*>(row[0]) + (first + e) * size_of(out), out, y[e], finite[e], table.overflow,
                  counts_of(table, number));
    }
}

constexpr int kAtOnce = 4;  // loads under way: a thread's next inputs are asked for before the first has come

template <class T, int V>
__global__ void any_steps(const __grid_constant__ StepTable table, const __grid_constant__ Steps steps) {
    const Slots<T, V> slots{sds_slots + threadIdx.x};
    const DType out = static_cast<DType>(table.out);
    const int out_size = static_cast<int>(size_of(out));
    for (uint32_t tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
        const Place place = place_of(table, tile, blockDim.x);
        const uint64_t* row = place.row;
        const uint64_t count = row[1], head = row[2] >> 32, aligned = row[3];
        const uint64_t packs = (count - head) / V, pack = place.packs_before + threadIdx.x;
        if (pack < packs) {
            const uint64_t first = head + pack * V;
            bool careful = false;
            for (int next = 0; next < table.inputs; next += kAtOnce) {
                uint4 raw[kAtOnce];
#pragma unroll
                for (int u = 0; u < kAtOnce; ++u) {
                    const int k = next + u;
                    if (k >= table.inputs) continue;
                    const int size = static_cast<int>(size_of(static_cast<DType>(table.in[k])));
                    const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + first * size;
                    raw[u] = load_pack<V>(from, size, aligned >> k & 1);
                }
#pragma unroll
                for (int u = 0; u < kAtOnce; ++u) {
                    const int k = next + u;
                    if (k >= table.inputs) continue;
                    T x[V];
                    widen<V>(raw[u], static_cast<DType>(table.in[k]), x);
#pragma unroll
                    for (int e = 0; e < V; ++e) careful |= magnitude_bits(x[e]) >= Bits<T>::inf;
                    slots.write(k, x);
                }
            }
            T y[V];
            run_steps<T, V>(steps, slots, y);
#pragma unroll
            for (int e = 0; e < V; ++e) careful |= magnitude_bits(y[e]) >= table.careful;
            if (careful) {
                steps_singly<T, V>(table, steps, slots, row, place.number, first, V);
            } else {
                store_pack<V>(reinterpret_cast<uint8_t*>(row[0]) + first * out_size, round_to<V>(y, out), out_size);
            }
        }
        if (place.packs_before == 0 && threadIdx.x == 0) {  // the row's head and tail, a pack at a time at most
            const uint64_t tail = head + packs * V;
            if (head) steps_singly<T, V>(table, steps, slots, row, place.number, 0, static_cast<int>(head));
            if (count > tail)
                steps_singly<T, V>(table, steps, slots, row, place.number, tail, static_cast<int>(count - tail));
        }
    }
}

// ---- the host's side

int slots_of(const Program& program) { return program.inputs + program.temps; }

Steps packed(const Program& program, const Numbers& numbers, bool wide) {
    Steps steps{};
    const auto at = [&program](Ref ref) {
        const int index = ref.kind == Ref::temp ? program.inputs + ref.index : ref.index;
        return static_cast<uint16_t>(ref.kind == Ref::constant ? index | kConstantBit : index);
    };
    for (const Step& step : program.steps) {
        steps.step[steps.count++] = {static_cast<uint8_t>(step.op), static_cast<uint8_t>(program.inputs + step.to),
                                     at(step.a), at(arity(step.op) > 1 ? step.b : step.a)};
        if (arity(step.op) > 2) steps.step[steps.count++].a = at(step.c);
    }
    steps.result = at(program.result);
    for (size_t k = 0; k < numbers.wide.size(); ++k) steps.constants[k] = wide ? numbers.wide[k] : numbers.narrow[k];
    return steps;
}

template <class T, int V>
void enqueue_steps(const Launch& launch, const std::vector<Row>& rows, bool wide) {
    const Steps steps = packed(launch.program, launch.numbers, wide);
    const int a_thread = slots_of(launch.program) * Slots<T, V>::bytes;
    int threads = kStepThreads;
    while (threads * a_thread > kSharedBytes) threads /= 2;
    StepTable table;
    in_tables(launch, rows, table, kStepWords, V, static_cast<uint64_t>(threads), [&](unsigned blocks) {
        start(any_steps<T, V>, blocks, threads, threads * a_thread, launch.stream, table, steps);
    });
}

}  // namespace
}  // namespace cuda
}  // namespace sds
