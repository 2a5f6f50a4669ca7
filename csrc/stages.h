// The stages of a program over one tensor: what its body reduces, and what it makes of that before it writes.
//
// Numeric rule. The expression that is reduced is evaluated like any other: in float32 (float64 for wide programs and
// F64 inputs). Its elements are widened to float64; products (of dot) and sums are rounded to float64 one by one, in
// the order of reduce.h: over the whole tensor, or over each row along the last axis, or each column along the first,
// as if each were a tensor of its own. A NaN or an Inf is added like any number. A minimum or maximum is NaN when an
// element is, and +0 when it is a zero; a NaN result is the canonical one. Expressions of these values are evaluated in
// float64 (scalars.h); the next stage meets them like constants.
//
// One thread works a tensor's stages off, one after the other, so the order needs no care. backends/reference.py and
// reductions.py have the same in NumPy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "program.h"
#include "targets.h"

namespace sds {

struct Extents {
    uint64_t count = 0, first = 0, last = 0;  // elements of the tensor, of its first axis, of its last
};

// Elements of one reduction, added in order as they come; `values` are complete once all have been.
class Accumulator {
 public:
    Accumulator(const Reduce& reduce, Extents extents);

    const Reduce::Kind kind;
    const Along along;
    const uint64_t line;                      // elements that one value is made of
    const uint64_t columns;                   // of values that are made side by side: along the first axis, else 1
    uint64_t position = 0;                    // elements so far: of the line, or along the first axis of the tensor
    std::vector<double> lanes, chunk, total;  // eight lanes, one and one for each column
    std::vector<double> values;

    bool is_extreme() const { return kind == Reduce::minimum || kind == Reduce::maximum; }
    void advance(uint64_t elements);  // after what lies within a block (a row of the columns) has been added to `lanes`
    void add_block(double sum, uint64_t elements);  // a whole block of a line, or the last one

 private:
    void begin_line();
    void fold();  // the lanes into the chunk
    void end_block(uint64_t in_line);
};

// Steps with their values filled in: what a CPU target evaluates. Inputs behind the tensor's own are values that
// differ by row or column.
struct Elementwise {
    std::shared_ptr<const Program> program;
    std::shared_ptr<const Numbers> numbers;
    std::vector<Reduce> reductions;  // of a stage, by this program's temps
    std::vector<int> broadcasts;     // numbers of the values that the further inputs are
};

class Stages {
 public:
    // Throws `invalid` unless the extents are those of a tensor.
    Stages(const Program& program, const Numbers& numbers, Extents extents, const std::vector<DType>& dtypes,
           const Target& target);

    // For each stage: begin(), the tensor's elements in order if it reads(), end(). A stretch that is not the tensor's
    // last is whole blocks.
    size_t size() const { return program_.stages.size(); }
    void begin(size_t stage);
    bool reads() const;
    void add(const Operand* operands, uint64_t count, Scratch& scratch);
    void end();

    // The same for operands that `read` finds: called with the first element and the number of elements.
    template <class Read>
    void work_off(Scratch& scratch, Read read) {
        for (size_t stage = 0; stage < size(); ++stage) {
            begin(stage);
            for (uint64_t first = 0, now; reads() && first < extents_.count; first += now) {
                now = std::min(kStretch, extents_.count - first);
                add(read(first, now), now, scratch);
            }
            end();
        }
    }
    static constexpr uint64_t kStretch = 64 * kReduceBlock;

    const Elementwise& last();  // once all stages have ended
    // Rows or columns as the further operands of `count` elements from element `first` on: `operands` has the tensor's.
    void broadcast(const Elementwise& steps, uint64_t first, uint64_t count, Operand* operands);

    const std::vector<double>& value(int number) const { return values_[static_cast<size_t>(number)].numbers; }
    Along along(int number) const { return values_[static_cast<size_t>(number)].along; }

 private:
    struct Value {
        std::vector<double> numbers;  // one, or as many as there are rows or columns
        Along along = Along::all;
    };
    Elementwise filled(const std::vector<Step>& steps, const std::vector<Ref>& wanted, std::vector<Ref>& found) const;
    Value evaluated(const ScalarStep& step) const;

    const Program& program_;
    const Numbers& numbers_;
    const Extents extents_;
    const Target& target_;
    bool wide_;
    size_t stage_ = 0;
    uint64_t done_ = 0;
    Elementwise steps_, last_;
    std::vector<Accumulator> accumulators_;
    std::vector<Value> values_;
    std::vector<std::vector<uint8_t>> rows_;  // of broadcast operands
};

}  // namespace sds
