// The CPU targets of this build. Each evaluates a Program over elements in memory; one is chosen at run time. A target
// is a file target_*.cc: the loops of loops.inl.h, compiled for its instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "encoding.h"
#include "generated.h"
#include "program.h"
#include "reduce.h"

namespace sds {

struct Operand {
    const uint8_t* data;  // any alignment
    DType dtype;
    const Generated* generated = nullptr;  // what stands in the place of data, from element `first` on
    uint64_t first = 0;
};

// What one evaluation met: elements with a NaN or Inf among their inputs, and elements whose inputs were all finite
// but whose result does not fit the output dtype.
struct Tally {
    uint64_t nonfinite = 0;
    uint64_t overflow = 0;
};

struct Scratch {
    // Strips of a program that has no fused kernel, from a cache line's start on: registers that lie across two lines
    // take twice as long.
    double* strips(size_t count) {
        constexpr size_t line = 64, spare = line / sizeof(double);
        if (memory.size() < count + spare) memory.resize(count + spare);
        const size_t past = reinterpret_cast<uintptr_t>(memory.data()) % line;
        return memory.data() + (past == 0 ? 0 : (line - past) / sizeof(double));
    }

 private:
    std::vector<double> memory;  // grows once, then is reused
};

// Deterministic, normally distributed numbers: element i of the stream `seed` is the same on every machine.
struct Fill {
    uint64_t seed;
    double mean, deviation;
};

class Accumulator;

// The loops of one target.
struct Loops {
    void (*evaluate)(const Program& program, const Numbers& numbers, const Operand* operands, uint8_t* out,
                     DType out_dtype, size_t count, Overflow policy, Tally& tally, Scratch& scratch);
    void (*fill)(const Fill& rule, uint64_t first, uint8_t* out, DType dtype, size_t count);
    // Whole blocks of a chunk, added to what `into` has of it already (reduce.h).
    void (*reduce)(Element a, const uint8_t* a_data, Element b, const uint8_t* b_data, size_t count, Reduction& into);
    // What a generated operand is, in float32 or float64.
    void (*generate)(const Generated& of, uint64_t first, size_t count, uint8_t* out, DType dtype);
    // Elements of a stage's reductions, added to what the accumulators have already (stages.h).
    void (*accumulate)(const Program& program, const Numbers& numbers, const Operand* operands, size_t count,
                       const Reduce* reductions, Accumulator* into, size_t reduction_count, size_t pass,
                       Scratch& scratch);
    // A run of codes of one row that share a scale, as float32 (encoding.h).
    void (*decode)(Coding kind, bool low_first, const uint8_t* codes, size_t first, size_t count, float scale,
                   float* out);
    // out [rows, columns] = left [rows, rank] · right [rank, columns], strides in elements (low_rank.h).
    void (*product)(const float* left, size_t left_stride, const float* right, size_t right_stride, size_t rows,
                    size_t columns, size_t rank, float* out, size_t out_stride);
};

struct Target : Loops {
    const char* name;
    bool (*runs_here)();
};

const std::vector<Target>& targets();                 // all that were built, the fastest first
const Target& target_named(const std::string& name);  // empty: the fastest that runs here

}  // namespace sds
