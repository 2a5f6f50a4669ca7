#include "stages.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace sds {

namespace {

// That are made at a time, and what each remembers: 6 MB. All of them together, and those of all outputs,
// remember so many elements between the bounds that samples give: 12 MB.
constexpr size_t kSelections = 8, kCandidates = 1 << 16, kBetween = 3 << 19;

}  // namespace

Stages::Stages(const Program& program, const Numbers& numbers, Extents extents, const std::vector<DType>& dtypes,
               const Target& target, Mixers mixers)
    : program_(program),
      numbers_(numbers),
      extents_(extents),
      target_(target),
      mixers_(std::move(mixers)),
      wide_(program.wide) {
    for (DType dtype : dtypes) wide_ |= dtype == DType::f64;
    for (const auto& mixer : mixers_) {
        if (mixer->elements() != extents_.count) throw Error(Code::invalid, "a job mixes another tensor");
    }
}

void Stages::begin(size_t stage) {
    stage_ = stage;
    pass_ = 0;
    ended_ = false;
    done_ = 0;
    accumulators_.clear();
    for (const Reduce& reduce : program_.stages[stage].reductions) {
        double k = 0;
        if (reduce.selects() && !number(reduce.b, k)) throw Error(Code::invalid, "k is one number");
        accumulators_.emplace_back(reduce, extents_, k, wide_ ? 64 : 32);
        if (!accumulators_.back().is_kept()) continue;
        static std::recursive_mutex mutex;  // one tensor at a time, of all threads
        if (!whole_) whole_ = std::unique_lock<std::recursive_mutex>(mutex);
        accumulators_.back().arrays.resize(reduce.kind == Reduce::mix ? 1 : arrays_of(reduce));
        for (WholeFunction::Bytes& each : accumulators_.back().arrays) each.resize(extents_.count * (wide_ ? 8 : 4));
    }
    start_selections();
    prepare();
}

// The next few that are not done; false if there are none.
bool Stages::start_selections() {
    const std::vector<Reduce>& reductions = program_.stages[stage_].reductions;
    std::vector<size_t> started;
    for (size_t i = 0; i < accumulators_.size() && started.size() < kSelections; ++i) {
        Selection* const selection = accumulators_[i].selection.get();
        if (!selection || selection->done()) continue;
        const auto twin = std::find_if(started.begin(), started.end(), [&](size_t other) {
            return reductions[other].a.kind == reductions[i].a.kind &&
                   reductions[other].a.index == reductions[i].a.index;
        });
        selection->start(kCandidates, twin == started.end() ? nullptr : accumulators_[*twin].selection.get());
        started.push_back(i);
    }
    return !started.empty();
}

bool Stages::wants_sample() const {
    return std::any_of(accumulators_.begin(), accumulators_.end(),
                       [](const Accumulator& each) { return each.wants(kSamplePass); });
}

void Stages::end_sample(size_t outputs) {
    std::vector<Selection*> sampled;
    for (const Accumulator& each : accumulators_) {
        if (each.wants(kSamplePass)) sampled.push_back(each.selection.get());
    }
    std::vector<const Selection*> without;  // those that count for themselves and twins, one of which has no bounds
    size_t room = kBetween / outputs;
    for (auto each = sampled.rbegin(); each != sampled.rend(); ++each) {
        (*each)->end_sample(room);  // a twin before the one that counted for both
        if ((*each)->bracket) {
            room -= (*each)->bracket->room();
        } else {
            without.push_back((*each)->counts_for_both());
        }
    }
    for (auto each = sampled.rbegin(); each != sampled.rend(); ++each) {
        const bool alone = std::find(without.begin(), without.end(), (*each)->counts_for_both()) == without.end();
        alone ? (*each)->count_alone() : (*each)->drop_bracket();
    }
    sampling_ = false;
    done_ = 0;
}

// The steps of what this pass wants.
void Stages::prepare() {
    const Stage& shape = program_.stages[stage_];
    std::vector<Ref> wanted, found;
    for (size_t i = 0; i < accumulators_.size(); ++i) {
        if (!accumulators_[i].wants(pass_)) continue;
        const Reduce& reduce = shape.reductions[i];
        if (expressions(reduce.kind) > 0) wanted.push_back(reduce.a);
        if (expressions(reduce.kind) > 1) wanted.push_back(reduce.b);
        const size_t arrays = reduce.kind == Reduce::whole ? arrays_of(reduce) : 0;
        wanted.insert(wanted.end(), reduce.args.begin(), reduce.args.begin() + static_cast<std::ptrdiff_t>(arrays));
    }
    steps_ = filled(shape.steps, wanted, found);
    steps_.reductions = shape.reductions;
    size_t next = 0;
    for (size_t i = 0; i < accumulators_.size(); ++i) {
        if (!accumulators_[i].wants(pass_)) continue;
        Reduce& reduce = steps_.reductions[i];
        if (expressions(reduce.kind) > 0) reduce.a = found[next++];
        if (expressions(reduce.kind) > 1) reduce.b = found[next++];
        const size_t arrays = reduce.kind == Reduce::whole ? arrays_of(reduce) : 0;
        for (size_t k = 0; k < arrays; ++k) reduce.args[k] = found[next++];
    }
}

bool Stages::reads() const {
    return !ended_ && std::any_of(accumulators_.begin(), accumulators_.end(),
                                  [this](const Accumulator& each) { return each.wants(pass_); });
}

uint64_t Stages::columns() const {
    for (const Accumulator& each : accumulators_) {
        if (each.along == Along::first && each.wants(pass_)) return each.columns;
    }
    return 0;
}

void Stages::add(const Operand* operands, uint64_t count, Scratch& scratch) {
    if (!reads()) return;  // only another output's stages do
    Operand all[Program::kMaxInputs];
    std::copy(operands, operands + program_.inputs, all);
    add_generated(steps_, done_, all);
    target_.accumulate(*steps_.program, *steps_.numbers, all, count, steps_.reductions.data(), accumulators_.data(),
                       accumulators_.size(), sampling_ ? kSamplePass : pass_, scratch);
    done_ += count;
}

bool Stages::in_chunks() const {
    return std::all_of(accumulators_.begin(), accumulators_.end(), [this](const Accumulator& each) {
        return !each.wants(pass_) || (!each.selection && !each.is_kept() && each.along == Along::all);
    });
}

std::vector<double> Stages::of_chunk(uint64_t first, const Operand* operands, uint64_t count, Scratch& scratch) const {
    std::vector<Operand> all(operands, operands + program_.inputs);
    all.resize(all.size() + steps_.generated.size());
    add_generated(steps_, first, all.data());
    std::vector<Accumulator> parts;
    for (const Reduce& reduce : steps_.reductions) parts.emplace_back(reduce, Extents::of({count}), 0, 0);
    target_.accumulate(*steps_.program, *steps_.numbers, all.data(), count, steps_.reductions.data(), parts.data(),
                       parts.size(), pass_, scratch);
    std::vector<double> found;
    for (const Accumulator& part : parts) found.push_back(part.wants(pass_) ? part.values[0] : 0);
    return found;
}

void Stages::add_chunk(const std::vector<double>& found, uint64_t count) {
    for (size_t i = 0; i < accumulators_.size(); ++i) {
        if (accumulators_[i].wants(pass_)) accumulators_[i].add_chunk(found[i], count);
    }
}

bool Stages::end() {
    if (ended_) return true;
    for (auto each = accumulators_.rbegin(); each != accumulators_.rend(); ++each) {  // the twins that counted last
        if (each->selection && each->selection->in_work()) each->selection->end_pass();
    }
    ++pass_;
    done_ = 0;
    if (reads()) return false;
    if (start_selections()) {
        prepare();
        return false;
    }
    for (size_t i = 0; i < accumulators_.size(); ++i) {
        Accumulator& each = accumulators_[i];
        if (each.kind == Reduce::whole) {
            values_.push_back(called(steps_.reductions[i], each.arrays));
            each.arrays = {};
            continue;
        }
        if (each.kind == Reduce::mix) {
            values_.push_back(mixed(steps_.reductions[i], std::move(each.arrays[0])));
            each.arrays = {};
            continue;
        }
        if (!each.selection) {
            values_.push_back({std::move(each.values), each.kind == Reduce::length ? Along::all : each.along});
            continue;
        }
        values_.push_back({{each.selection->threshold()}, Along::all});
        if (each.kind == Reduce::top) values_.push_back({{each.selection->last()}, Along::all});
    }
    asked_.resize(values_.size());
    for (const ScalarStep& step : program_.stages[stage_].scalars) {
        values_.push_back({{}, along_of(step)});
        asked_.push_back(&step);
    }
    whole_ = {};
    return ended_ = true;
}

Stages::Value Stages::mixed(const Reduce& reduce, WholeFunction::Bytes elements) const {
    const size_t which = static_cast<size_t>(reduce.function);
    if (reduce.function < 0 || which >= mixers_.size())
        throw Error(Code::invalid, "a job lacks what its program mixes");
    Value made{{0}, Along::each, std::move(elements)};
    if (wide_) {
        mixers_[which]->mix(reinterpret_cast<double*>(made.elements.data()));
    } else {
        mixers_[which]->mix(reinterpret_cast<float*>(made.elements.data()));
    }
    return made;
}

size_t Stages::arrays_of(const Reduce& reduce) const {
    return static_cast<size_t>(program_.functions[static_cast<size_t>(reduce.function)].arrays);
}

Stages::Value Stages::called(const Reduce& reduce, const std::vector<WholeFunction::Bytes>& arrays) const {
    std::vector<double> numbers;
    for (size_t k = arrays.size(); k < reduce.args.size(); ++k) {
        numbers.push_back(0);
        if (!number(reduce.args[k], numbers.back())) throw Error(Code::invalid, "a function of tensors takes numbers");
    }
    Value made{{0}, Along::each, WholeFunction::Bytes(extents_.count * (wide_ ? 8 : 4))};
    if (extents_.count != 0)
        program_.functions[static_cast<size_t>(reduce.function)].call(arrays, numbers, extents_.shape, wide_,
                                                                      made.elements);
    return made;
}

const Elementwise& Stages::last() {
    if (!last_.program) {
        std::vector<Ref> found;
        last_ = filled(program_.steps, {program_.result}, found);
    }
    return last_;
}

// Without products with 1, unless a formula of formulas.h is recognised with them.
Elementwise Stages::filled(const std::vector<Step>& steps, const std::vector<Ref>& wanted,
                           std::vector<Ref>& found) const {
    Elementwise made = filled(steps, wanted, false, found);
    if (made.program->fused >= 0 || !made.program->weights.empty()) return made;
    found.clear();
    return filled(steps, wanted, true, found);
}

// The steps that `wanted` needs, with values as constants (those of rows and columns as inputs, as is what is made),
// every `where` that hangs on one number decided and, if wanted, `without_ones`: no product with 1. `found` is where
// the wanted results are. Constants are numbered in the order of their use, so that a formula of formulas.h is
// recognised.
Elementwise Stages::filled(const std::vector<Step>& steps, const std::vector<Ref>& wanted, bool without_ones,
                           std::vector<Ref>& found) const {
    // A temp is used for several results, one after the other: `made` has the step that made each, by its number.
    struct Node {
        Op op;
        Ref args[3];  // Ref::temp: the number of a step
    };
    std::vector<Node> made;
    std::vector<Ref> stands_for;  // of each step: itself, or what a decided `where` gives
    std::vector<int> holder(Program::kMaxTemps, -1);
    const auto resolved = [&](Ref ref) {
        return ref.kind == Ref::temp ? stands_for[static_cast<size_t>(holder[static_cast<size_t>(ref.index)])] : ref;
    };
    for (const Step& step : steps) {
        const Ref given[] = {step.a, step.b, step.c};
        Node next{step.op, {}};
        for (int k = 0; k < arity(step.op); ++k) next.args[k] = resolved(given[k]);
        const int at = static_cast<int>(made.size());
        double truth = 0;
        const bool decided = step.op == Op::where && number(next.args[0], truth);
        double factor = 0;
        const bool product = without_ones && step.op == Op::mul;
        const int one = product && number(next.args[0], factor) && factor == 1   ? 0
                        : product && number(next.args[1], factor) && factor == 1 ? 1
                                                                                 : -1;
        stands_for.push_back(decided    ? next.args[truth != 0 ? 1 : 2]
                             : one >= 0 ? next.args[1 - one]
                                        : Ref{Ref::temp, at});
        made.push_back(next);
        holder[static_cast<size_t>(step.to)] = at;
    }
    for (Ref ref : wanted) found.push_back(resolved(ref));

    // The last use of each step that is needed.
    const int end = static_cast<int>(made.size());
    std::vector<int> last_use(made.size(), -1);
    const auto use = [&](Ref ref, int by) {
        if (ref.kind == Ref::temp)
            last_use[static_cast<size_t>(ref.index)] = std::max(last_use[static_cast<size_t>(ref.index)], by);
    };
    for (Ref ref : found) use(ref, end);
    for (int i = end - 1; i >= 0; --i) {
        if (last_use[static_cast<size_t>(i)] < 0) continue;
        for (int k = 0; k < arity(made[static_cast<size_t>(i)].op); ++k) use(made[static_cast<size_t>(i)].args[k], i);
    }

    Elementwise out;
    std::vector<Step> kept;
    std::vector<double> constants;
    std::vector<std::pair<Ref, Ref>> known;  // constants and values: their new places
    std::vector<int> place(made.size(), -1), unused;
    int temps = 0;
    const auto renumbered = [&](Ref ref) -> Ref {
        if (ref.kind == Ref::input) return ref;
        if (ref.kind == Ref::temp) return {Ref::temp, place[static_cast<size_t>(ref.index)]};
        for (const auto& [before, now] : known) {
            if (before.kind == ref.kind && before.index == ref.index) return now;
        }
        Ref now;
        double value;
        if (number(ref, value)) {
            now = {Ref::constant, static_cast<int>(constants.size())};
            constants.push_back(value);
        } else {
            now = {Ref::input, program_.inputs + static_cast<int>(out.generated.size())};
            out.generated.push_back(generated(ref));
        }
        known.emplace_back(ref, now);
        return now;
    };
    for (int i = 0; i < end; ++i) {
        if (last_use[static_cast<size_t>(i)] < 0) continue;
        const Node& step = made[static_cast<size_t>(i)];
        Ref args[3];
        for (int k = 0; k < arity(step.op); ++k) args[k] = renumbered(step.args[k]);
        int& to = place[static_cast<size_t>(i)];
        if (unused.empty()) {
            to = temps++;
        } else {
            to = unused.back();
            unused.pop_back();
        }
        kept.push_back({step.op, args[0], args[1], args[2], to});
        for (int k = 0; k < arity(step.op); ++k) {
            const Ref ref = step.args[k];
            if (ref.kind != Ref::temp || last_use[static_cast<size_t>(ref.index)] != i) continue;
            last_use[static_cast<size_t>(ref.index)] = end;  // once, though it may be several arguments
            unused.push_back(place[static_cast<size_t>(ref.index)]);
        }
    }
    for (Ref& ref : found) ref = renumbered(ref);
    const Ref result = found.empty() ? Ref{} : found[0];
    out.program = std::make_shared<Program>(program_.inputs + static_cast<int>(out.generated.size()),
                                            static_cast<int>(constants.size()), std::move(kept), result, wide_,
                                            std::vector<Stage>(), std::vector<Made>(), program_.inputs);
    out.numbers = std::make_shared<Numbers>(*out.program, std::move(constants));
    return out;
}

void Stages::add_generated(const Elementwise& steps, uint64_t first, Operand* operands) const {
    for (size_t k = 0; k < steps.generated.size(); ++k)
        operands[static_cast<size_t>(program_.inputs) + k] = {nullptr, DType::f32, &steps.generated[k], first};
}

}  // namespace sds
