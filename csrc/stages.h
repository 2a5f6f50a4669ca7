// The stages of a program over one tensor: what its body reduces, and what it makes of that before it writes.
//
// Numeric rule. The expression that is reduced is evaluated like any other: in float32 (float64 for wide programs and
// F64 inputs). Its elements are widened to float64; products (of dot) and sums are rounded to float64 one by one, in
// the order of reduce.h: over the whole tensor, or over each row along the last axis, or each column along the first,
// as if each were a tensor of its own. A NaN or an Inf is added like any number. A minimum or maximum is NaN when an
// element is, and +0 when it is a zero; a NaN result is the canonical one. Expressions of these values are evaluated in
// float64 (scalars.h); the next stage meets them like constants.
//
// Of many selections a few are made at a time, so that their memory is bounded.
//
// One thread runs a tensor's stages one after the other, so their order is certain. backends/reference.py and
// definitions/reductions.py have the same in NumPy.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "accumulator.h"
#include "generated.h"
#include "mixing.h"
#include "program.h"
#include "targets.h"

namespace sds {

// Steps with their values filled in: what a CPU target evaluates. Inputs behind the tensor's own are generated.
struct Elementwise {
    std::shared_ptr<const Program> program;
    std::shared_ptr<const Numbers> numbers;
    std::vector<Reduce> reductions;    // of a stage, by this program's temps
    std::vector<Generated> generated;  // the further inputs
};

using Mixers = std::vector<std::shared_ptr<const Mixer>>;

class Stages {
 public:
    // `mixers`: what the job's Mixings are, by their numbers. Throws `invalid` when they are of another tensor.
    Stages(const Program& program, const Numbers& numbers, Extents extents, const std::vector<DType>& dtypes,
           const Target& target, Mixers mixers = {});

    // For each stage: begin(), then the tensor's elements in order if it reads(), and end(), until that is true. A
    // stretch that is not the tensor's last is whole blocks.
    size_t size() const { return program_.stages.size(); }
    void begin(size_t stage);
    bool reads() const;
    uint64_t columns() const;  // of a row, whose numbers are now added to those of other rows; 0 where none are
    void add(const Operand* operands, uint64_t count, Scratch& scratch);
    bool end();

    // Before a pass over a tensor that lies in memory: whether something is saved if add() sees all of it between these
    // two, of which it reads a sample. So many outputs share the memory for what lies between bounds.
    bool wants_sample() const;
    void begin_sample() { sampling_ = true; }
    void end_sample(size_t outputs);

    // Whether all that is read now are sums and extremes over the whole tensor. Then what its chunks (reduce.h) add may
    // be found in any order, on any threads, and is added in theirs.
    bool in_chunks() const;
    std::vector<double> of_chunk(uint64_t first, const Operand* operands, uint64_t count, Scratch& scratch) const;
    void add_chunk(const std::vector<double>& found, uint64_t count);

    // The same for operands that `read` finds: called with the first element and the number of elements.
    template <class Read>
    void work_off(Scratch& scratch, Read read) {
        for (size_t stage = 0; stage < size(); ++stage) {
            begin(stage);
            do {
                for (uint64_t first = 0, now; reads() && first < extents_.count; first += now) {
                    now = std::min(kStretch, extents_.count - first);
                    add(read(first, now), now, scratch);
                }
            } while (!end());
        }
    }
    static constexpr uint64_t kStretch = 64 * kReduceBlock;

    const Elementwise& last();                    // once all stages have ended
    std::vector<double> of_whole_tensor() const;  // the values that are one number, in their order
    // The further operands, from element `first` on: `operands` has the tensor's own.
    void add_generated(const Elementwise& steps, uint64_t first, Operand* operands) const;

 private:
    struct Value {
        std::vector<double> numbers;  // one, or as many as there are rows or columns
        Along along = Along::all;
        WholeFunction::Bytes elements = {};      // of Along::each: float32, or float64
        mutable std::vector<float> narrow = {};  // the numbers, once a generated operand asked for them
    };
    Elementwise filled(const std::vector<Step>& steps, const std::vector<Ref>& wanted, std::vector<Ref>& found) const;
    Elementwise filled(const std::vector<Step>& steps, const std::vector<Ref>& wanted, bool without_ones,
                       std::vector<Ref>& found) const;
    // What scalars give is found when it is asked for, and of a `where` on one number only the side that it takes: an
    // iteration that has converged costs nothing more.
    const Value& value(int index) const;
    std::vector<double> evaluated(const ScalarStep& step) const;
    Along along_of(const ScalarStep& step) const;
    int unknown(const ScalarStep& step) const;
    const Ref* taken(const ScalarStep& step) const;
    bool start_selections();
    void prepare();
    size_t arrays_of(const Reduce& reduce) const;
    Value called(const Reduce& reduce, const std::vector<WholeFunction::Bytes>& arrays) const;
    Value mixed(const Reduce& reduce, WholeFunction::Bytes elements) const;
    bool number(Ref ref, double& value) const;  // whether it is one
    Generated generated(Ref ref) const;         // a value of rows or columns, or what is made

    const Program& program_;
    const Numbers& numbers_;
    const Extents extents_;
    const Target& target_;
    const Mixers mixers_;
    bool wide_;
    size_t stage_ = 0, pass_ = 0;
    bool ended_ = false, sampling_ = false;
    std::unique_lock<std::recursive_mutex> whole_;  // held while the arguments of a function are in memory
    uint64_t done_ = 0;
    Elementwise steps_, last_;
    std::vector<Accumulator> accumulators_;
    // Of asked_, a value is not known yet: the step that gives it.
    mutable std::vector<Value> values_;
    mutable std::vector<const ScalarStep*> asked_;
};

}  // namespace sds
