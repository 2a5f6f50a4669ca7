// The shape of a formula: what a method's Python body becomes when it is traced. Each step is one rounded operation;
// steps are evaluated in order, strip by strip, in buffers that stay in the first-level cache. A program has no numbers
// of its own: each job brings its constants. What a body reduces is found by stages, before the steps: stages.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "dtypes.h"
#include "error.h"
#include "scalars.h"

namespace sds {

// minimum and maximum give the second operand unless the first is smaller (larger) or NaN; comparisons give 1 or 0;
// sign gives −1, 0, 1 or NaN; where gives its second operand unless the first is 0; fma gives a·b + c, rounded once;
// exp, log and pow are those of functions.h. python/sdsurgery/functions says the same in NumPy.
enum class Op : int {
    add = 0,
    sub,
    mul,
    div,
    minimum,
    maximum,
    lt,
    le,
    gt,
    ge,
    eq,
    ne,
    copysign,
    pow,  // of two operands
    neg,
    abs,
    sqrt,
    sign,
    floor,
    exp,
    log,  // of one
    where,
    fma,  // of three
    kCount
};  // clang-format keeps the rows apart
SDS_HD inline int arity(Op op) { return op < Op::neg ? 2 : op < Op::where ? 1 : 3; }

struct Ref {
    enum Kind : int { input = 0, constant, temp, value, made, kCount } kind = input;  // value: of the stages
    int index = 0;
};

struct Step {
    Op op;
    Ref a, b, c;  // as many as the operation has
    int to;       // temp that receives the result
};

// What a reduction runs along: the whole tensor, its first axis (one value for each column), its last (for each row),
// all but the first (for each output channel). As the axis of an index: the first, the last, the second.
// inputs: all but the second axis, in the order of the elements. each: an element for each, of `whole` and `mix` only.
enum class Along : int { all = 0, first, last, channel, inputs, kCount, each = kCount };

struct Reduce {
    // kth is the k-th largest; top gives it, and the last index of its equals that belongs to the k largest (select.h).
    // length is the tensor's number of elements along an axis, or (all) of axes.
    // mix is all elements of an expression after a job's Mixing (mixing.h).
    enum Kind : int { sum = 0, dot, minimum, maximum, count, kth, top, length, whole, mix, kCount } kind;
    Along along;
    Ref a, b;                    // as many as the kind has; of kth and top b is k, a constant or a value
    int function = 0;            // of whole: which of the program's; of mix: which of the job's
    std::vector<Ref> args = {};  // of whole: expressions, then constants and values
    bool selects() const { return kind == kth || kind == top; }
};
inline int expressions(Reduce::Kind kind) {  // that it reads for each element
    return kind == Reduce::count || kind == Reduce::length || kind == Reduce::whole ? 0 : kind == Reduce::dot ? 2 : 1;
}
inline int arity(Reduce::Kind kind) { return kind == Reduce::kth || kind == Reduce::top ? 2 : expressions(kind); }

// A function of whole tensors: it gets the elements of `arrays` expressions, and numbers, and fills `out` with an
// element for each of theirs; all in float32, or float64 if `wide`.
struct WholeFunction {
    using Bytes = std::vector<uint8_t>;
    int arrays;
    std::function<void(const std::vector<Bytes>& arrays, const std::vector<double>& numbers,
                       const std::vector<uint64_t>& shape, bool wide, Bytes& out)>
        call;
};

// An operand that no file holds (generated.h): an element's index along an axis, whether its index in the tensor is at
// most `args[0]`, or a random number with the two words of its key and the number of the draw as arguments.
struct Made {
    enum Kind : int { index = 0, within, uniform, normal, kCount } kind;
    Along along;
    Ref args[3];  // constants and values
};
inline int arity(Made::Kind kind) { return kind == Made::index ? 0 : kind == Made::within ? 1 : 3; }

// An operation on values, in float64: those of Op, and behind them these: functions (scalars.h), and the sum of what a
// value has of all rows, columns or channels.
enum class ScalarFunction : int { sin = static_cast<int>(Op::kCount), cos, acos, sum_values, kEnd };
struct ScalarStep {
    int op;
    Ref args[3];  // constants and values
    bool sums() const { return op == static_cast<int>(ScalarFunction::sum_values); }
};
inline int scalar_arity(int op) {
    if (op < static_cast<int>(Op::kCount)) return arity(static_cast<Op>(op));
    return 1;
}

// What must be known of whole tensors before the next stage begins. Values are numbered through all stages: of each its
// reductions (two of `top`), then its scalars.
struct Stage {
    std::vector<Step> steps;
    std::vector<Reduce> reductions;
    std::vector<ScalarStep> scalars;
};

// What identifies an expression: the same for two programs whose results are made by the same operations from the same
// inputs and constants, whatever the temps are called. (Of 64 bits: formulas.h has a handful, and each is compared with
// the number of its inputs and constants too.)
struct Shape {
    uint64_t id;

    SDS_HD static Shape mixed(uint64_t kind, uint64_t a, uint64_t b = 0, uint64_t c = 0) {
        uint64_t h = 0xcbf29ce484222325;  // FNV-1a, by words
        const uint64_t words[] = {kind, a, b, c};
        for (uint64_t word : words) {
            h = (h ^ word) * 0x100000001b3;
            h ^= h >> 29;
        }
        return {h};
    }
    SDS_HD static Shape of(Ref::Kind kind, int index) { return mixed(100 + static_cast<uint64_t>(kind), index); }
    SDS_HD static Shape of(Op op, Shape a, Shape b, Shape c) {
        const int n = arity(op);
        return mixed(static_cast<uint64_t>(op), a.id, n > 1 ? b.id : 0, n > 2 ? c.id : 0);
    }
    SDS_HD friend Shape operator+(Shape a, Shape b) { return of(Op::add, a, b, b); }
    SDS_HD friend Shape operator-(Shape a, Shape b) { return of(Op::sub, a, b, b); }
    SDS_HD friend Shape operator*(Shape a, Shape b) { return of(Op::mul, a, b, b); }
    SDS_HD friend Shape operator/(Shape a, Shape b) { return of(Op::div, a, b, b); }
    SDS_HD friend Shape minimum(Shape a, Shape b) { return of(Op::minimum, a, b, b); }
    SDS_HD friend Shape maximum(Shape a, Shape b) { return of(Op::maximum, a, b, b); }
    SDS_HD friend Shape absolute(Shape a) { return of(Op::abs, a, a, a); }
    SDS_HD friend Shape negated(Shape a) { return of(Op::neg, a, a, a); }
    SDS_HD friend Shape floor(Shape a) { return of(Op::floor, a, a, a); }
    SDS_HD friend Shape copysign(Shape a, Shape b) { return of(Op::copysign, a, b, b); }
    SDS_HD friend Shape exp(Shape a) { return of(Op::exp, a, a, a); }
    SDS_HD friend Shape log(Shape a) { return of(Op::log, a, a, a); }
    SDS_HD friend Shape pow(Shape a, Shape b) { return of(Op::pow, a, b, b); }
    SDS_HD friend Shape equal(Shape a, Shape b) { return of(Op::eq, a, b, b); }
    SDS_HD friend Shape not_equal(Shape a, Shape b) { return of(Op::ne, a, b, b); }
    SDS_HD friend Shape not_a_number(Shape a) { return not_equal(a, a); }
    SDS_HD friend Shape less(Shape a, Shape b) { return of(Op::lt, a, b, b); }
    SDS_HD friend Shape greater(Shape a, Shape b) { return of(Op::gt, a, b, b); }
    SDS_HD friend Shape at_least(Shape a, Shape b) { return of(Op::ge, a, b, b); }
    SDS_HD friend Shape where(Shape a, Shape b, Shape c) { return of(Op::where, a, b, c); }
};

#include "formulas.h"
#include "functions.h"

// The shape of a formula of formulas.h, found by evaluating it on shapes.
template <class Formula>
uint64_t id_of() {
    Shape x[Formula::inputs], c[Formula::constants + 1];
    for (int k = 0; k < Formula::inputs; ++k) x[k] = Shape::of(Ref::input, k);
    for (int k = 0; k < Formula::constants; ++k) c[k] = Shape::of(Ref::constant, k);
    return Formula::apply(x, c).id;
}

class Program {
 public:
    static constexpr int kMaxInputs = 1024, kMaxTemps = 1024, kMaxConstants = 2048, kMaxValues = 1 << 18;

    // `own`: how many of the inputs are elements of tensors, when values of rows or columns come behind them.
    Program(int inputs, int constants, std::vector<Step> steps, Ref result, bool wide, std::vector<Stage> stages = {},
            std::vector<Made> made = {}, int own = -1, std::vector<WholeFunction> functions = {})
        : inputs(inputs),
          constants(constants),
          steps(std::move(steps)),
          result(result),
          wide(wide),
          stages(std::move(stages)),
          made(std::move(made)),
          functions(std::move(functions)),
          own(own < 0 ? inputs : own) {
        validate();
        if (in_stages()) return;  // stages.h makes the program that is evaluated
        find_bounds();
        id = shape();
        Finder finder{*this};
        formulas::for_each(finder);
        fused = finder.found;
        if (this->own == inputs) find_weights_of_sum();
    }

    const int inputs;
    const int constants;  // how many numbers a job brings
    const std::vector<Step> steps;
    const Ref result;
    const bool wide;  // evaluate in float64 even when every input is narrower
    const std::vector<Stage> stages;
    const std::vector<Made> made;
    const std::vector<WholeFunction> functions;
    const int own;  // inputs that count as such: a NaN in them is no overflow
    bool in_stages() const { return !stages.empty() || !made.empty(); }  // evaluated by stages.h, a tensor at a time
    int temps = 0;
    uint64_t id = 0;  // of its shape
    int fused = -1;   // index in formulas::for_each, -1 when only the steps can evaluate it
    bool fused_sum() const { return fused >= 0 && fused < formulas::kSums; }  // of formulas::for_each_sum
    // Of c·x0 + c·x1 + …, from left to right: which constant stands before each input. Else empty.
    std::vector<int> weights;
    int added = -1;  // the constant that such a sum ends with, if it does
    // Of each input the constant that it is compared with by <, where nothing else is done with it; else -1.
    std::vector<int> bounds;

 private:
    struct Finder {
        const Program& program;
        int next = 0, found = -1;
        template <class Formula>
        void operator()(Formula) {
            if (program.id == id_of<Formula>() && program.inputs == Formula::inputs &&
                program.own == Formula::inputs - Formula::generated && program.constants == Formula::constants)
                found = next;
            ++next;
        }
    };

    void find_bounds() {
        constexpr int unknown = -2;
        bounds.assign(static_cast<size_t>(inputs), unknown);
        const auto use = [this](Ref ref, int bound) {
            if (ref.kind != Ref::input) return;
            int& found = bounds[static_cast<size_t>(ref.index)];
            found = found == unknown || found == bound ? bound : -1;
        };
        for (const Step& step : steps) {
            const Ref args[] = {step.a, step.b, step.c};
            const bool bounded = step.op == Op::lt && step.b.kind == Ref::constant;
            for (int k = 0; k < arity(step.op); ++k) use(args[k], bounded && k == 0 ? step.b.index : -1);
        }
        use(result, -1);
        for (int& bound : bounds) bound = bound == unknown ? -1 : bound;
    }

    void find_weights_of_sum() {
        std::vector<int> found(static_cast<size_t>(inputs), -1);
        for (const Step& step : steps) {
            if (step.op == Op::mul && step.a.kind == Ref::constant && step.b.kind == Ref::input)
                found[static_cast<size_t>(step.b.index)] = step.a.index;
        }
        Shape total{0};
        for (int k = 0; k < inputs; ++k) {
            if (found[static_cast<size_t>(k)] < 0) return;
            const Shape term = Shape::of(Ref::constant, found[static_cast<size_t>(k)]) * Shape::of(Ref::input, k);
            total = k == 0 ? term : total + term;
        }
        const bool more =
            total.id != id && !steps.empty() && steps.back().op == Op::add && steps.back().b.kind == Ref::constant;
        if (more) total = total + Shape::of(Ref::constant, steps.back().b.index);
        if (total.id != id) return;
        weights = found;
        if (more) added = steps.back().b.index;
    }

    uint64_t shape() const {
        std::vector<Shape> made(static_cast<size_t>(temps));
        const auto at = [&made](Ref ref) {
            return ref.kind == Ref::temp ? made[static_cast<size_t>(ref.index)] : Shape::of(ref.kind, ref.index);
        };
        for (const Step& step : steps) {
            const int n = arity(step.op);
            const Shape a = at(step.a), b = n > 1 ? at(step.b) : a, c = n > 2 ? at(step.c) : a;
            made[static_cast<size_t>(step.to)] = Shape::of(step.op, a, b, c);
        }
        return at(result).id;
    }

    void check(Ref ref, int known_temps, int known_values) const {
        const int limits[] = {inputs, constants, known_temps, known_values, static_cast<int>(made.size())};
        if (ref.index < 0 || ref.index >= limits[ref.kind])
            throw Error(Code::invalid, "a program refers to an unknown value");
    }

    void check_whole(const Reduce& reduce, int known_temps, int known_values) const {
        if (reduce.function < 0 || static_cast<size_t>(reduce.function) >= functions.size() ||
            static_cast<int>(reduce.args.size()) < functions[static_cast<size_t>(reduce.function)].arrays)
            throw Error(Code::invalid, "a program refers to an unknown function");
        for (size_t k = 0; k < reduce.args.size(); ++k) {
            check(reduce.args[k], known_temps, known_values);
            if (static_cast<int>(k) >= functions[static_cast<size_t>(reduce.function)].arrays)
                check_number(reduce.args[k]);
        }
    }

    static void check_number(Ref ref) {
        if (ref.kind != Ref::constant && ref.kind != Ref::value)
            throw Error(Code::invalid, "a function of scalars takes scalars");
    }

    int checked(const std::vector<Step>& some, int known_values) const {  // how many temps they need
        int known = 0;
        for (const Step& step : some) {
            if (step.op < Op::add || step.op >= Op::kCount) throw Error(Code::invalid, "unknown operation");
            check(step.a, known, known_values);
            if (arity(step.op) > 1) check(step.b, known, known_values);
            if (arity(step.op) > 2) check(step.c, known, known_values);
            if (step.to < 0 || step.to > known || step.to >= kMaxTemps)
                throw Error(Code::invalid, "a program needs too many intermediate results");
            if (step.to == known) ++known;
        }
        return known;
    }

    void validate() {
        if (inputs < 0 || inputs > kMaxInputs) throw Error(Code::invalid, "a program takes at most 1024 inputs");
        if (constants < 0 || constants > kMaxConstants)
            throw Error(Code::invalid, "a program has at most 2048 constants");
        int values = 0;
        for (const Stage& stage : stages) {
            const int known = checked(stage.steps, values);
            for (const Reduce& reduce : stage.reductions) {
                if (reduce.kind < Reduce::sum || reduce.kind >= Reduce::kCount)
                    throw Error(Code::invalid, "unknown reduction");
                if (arity(reduce.kind) > 0) check(reduce.a, known, values);
                if (arity(reduce.kind) > 1) check(reduce.b, known, values);
                if (reduce.selects()) check_number(reduce.b);
                if (reduce.kind == Reduce::whole) check_whole(reduce, known, values);
            }
            for (const Reduce& reduce : stage.reductions) values += reduce.kind == Reduce::top ? 2 : 1;
            for (const ScalarStep& step : stage.scalars) {
                if (step.op < 0 || step.op >= static_cast<int>(ScalarFunction::kEnd))
                    throw Error(Code::invalid, "unknown function of scalars");
                for (int k = 0; k < scalar_arity(step.op); ++k) {
                    check_number(step.args[k]);
                    check(step.args[k], 0, values);
                }
                ++values;
            }
        }
        for (const Made& each : made) {
            for (int k = 0; k < arity(each.kind); ++k) {
                check_number(each.args[k]);
                check(each.args[k], 0, values);
            }
        }
        if (values > kMaxValues) throw Error(Code::invalid, "a program has too many reduced values");
        temps = checked(steps, values);
        check(result, temps, values);
    }
};

// The constants of one job: float64 as they were given, and rounded once to float32, which is how they meet tensors.
class Numbers {
 public:
    Numbers(const Program& program, std::vector<double> values) : wide(std::move(values)) {
        if (wide.size() != static_cast<size_t>(program.constants))
            throw Error(Code::invalid, "a job has the wrong number of constants for its program");
        narrow.reserve(wide.size());
        for (double value : wide) narrow.push_back(static_cast<float>(value));
    }

    const double* of(double) const { return wide.data(); }
    const float* of(float) const { return narrow.data(); }

    std::vector<double> wide;
    std::vector<float> narrow;
};

}  // namespace sds
