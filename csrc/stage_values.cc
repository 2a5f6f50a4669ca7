// What stages make of the values that they reduce: expressions of them, in float64, and operands.

#include <cmath>
#include <cstdint>

#include "stages.h"

namespace sds {

namespace {

double apply(int op, double a, double b, double c) {
    if (op >= static_cast<int>(Op::kCount)) {
        switch (static_cast<ScalarFunction>(op)) {
            case ScalarFunction::sin: return scalars::sin(a);
            case ScalarFunction::cos: return scalars::cos(a);
            default: return scalars::acos(a);
        }
    }
    switch (static_cast<Op>(op)) {
        case Op::add: return a + b;
        case Op::sub: return a - b;
        case Op::mul: return a * b;
        case Op::div: return a / b;
        case Op::minimum: return a < b || a != a ? a : b;
        case Op::maximum: return a > b || a != a ? a : b;
        case Op::lt: return a < b;
        case Op::le: return a <= b;
        case Op::gt: return a > b;
        case Op::ge: return a >= b;
        case Op::eq: return a == b;
        case Op::ne: return a != b;
        case Op::copysign: return functions::lane_copysign(a, b);
        case Op::pow: return scalars::pow(a, b);
        case Op::neg: return -a;
        case Op::abs: return std::fabs(a);
        case Op::sqrt: return scalars::sqrt(a);
        case Op::sign: return a > 0 ? 1 : a < 0 ? -1 : a == 0 ? 0 : a;
        case Op::floor: return std::floor(a);
        case Op::exp: return scalars::exp(a);
        case Op::log: return scalars::log(a);
        case Op::fma: return std::fma(a, b, c);
        default: return a != 0 ? b : c;
    }
}

}  // namespace

const Stages::Value& Stages::value(int index) const {
    std::vector<int> wanted{index};
    while (!wanted.empty()) {
        const size_t now = static_cast<size_t>(wanted.back());
        const int before = asked_[now] ? unknown(*asked_[now]) : -1;
        if (before >= 0) {
            wanted.push_back(before);
            continue;
        }
        if (asked_[now]) values_[now].numbers = evaluated(*asked_[now]);
        asked_[now] = nullptr;
        wanted.pop_back();
    }
    return values_[static_cast<size_t>(index)];
}

// A value that must be known before the step's; −1 when all are.
int Stages::unknown(const ScalarStep& step) const {
    const auto left = [this](Ref ref) { return ref.kind == Ref::value && asked_[static_cast<size_t>(ref.index)]; };
    if (step.op == static_cast<int>(Op::where) && !left(step.args[0])) {
        if (const Ref* const only = taken(step)) return left(*only) ? only->index : -1;
    }
    for (int k = 0; k < scalar_arity(step.op); ++k) {
        if (left(step.args[k])) return step.args[k].index;
    }
    return -1;
}

// Of a `where` on one number, which is known, the side that it takes; null where there are several.
const Ref* Stages::taken(const ScalarStep& step) const {
    const Ref ref = step.args[0];
    if (ref.kind == Ref::constant) return &step.args[numbers_.wide[static_cast<size_t>(ref.index)] != 0 ? 1 : 2];
    const Value& condition = values_[static_cast<size_t>(ref.index)];
    return condition.along == Along::all ? &step.args[condition.numbers[0] != 0 ? 1 : 2] : nullptr;
}

Along Stages::along_of(const ScalarStep& step) const {
    Along along = Along::all;
    if (step.sums()) return along;
    for (int k = 0; k < scalar_arity(step.op); ++k) {
        const Ref ref = step.args[k];
        const Along other = ref.kind == Ref::value ? values_[static_cast<size_t>(ref.index)].along : Along::all;
        if (other == Along::all) continue;
        if (along != Along::all && along != other) throw Error(Code::invalid, "values along different axes meet");
        along = other;
    }
    return along;
}

std::vector<double> Stages::evaluated(const ScalarStep& step) const {
    if (step.sums() && step.args[0].kind == Ref::value)
        return {sum_in_order(values_[static_cast<size_t>(step.args[0].index)].numbers)};
    const auto numbers = [this](Ref ref) {
        return ref.kind == Ref::constant
                   ? std::pair<const double*, size_t>{&numbers_.wide[static_cast<size_t>(ref.index)], 1}
                   : std::pair<const double*, size_t>{values_[static_cast<size_t>(ref.index)].numbers.data(),
                                                      values_[static_cast<size_t>(ref.index)].numbers.size()};
    };
    if (step.op == static_cast<int>(Op::where)) {
        if (const Ref* const only = taken(step)) {
            const auto [first, count] = numbers(*only);
            return {first, first + count};
        }
    }
    std::pair<const double*, size_t> parts[3] = {};
    size_t count = 1;
    for (int k = 0; k < scalar_arity(step.op); ++k) {
        parts[k] = numbers(step.args[k]);
        count = std::max(count, parts[k].second);
    }
    const auto at = [&](int k, size_t i) { return parts[k].first ? parts[k].first[parts[k].second == 1 ? 0 : i] : 0; };
    std::vector<double> made(count);
    for (size_t i = 0; i < count; ++i) made[i] = apply(step.op, at(0, i), at(1, i), at(2, i));
    return made;
}

bool Stages::number(Ref ref, double& value) const {
    if (ref.kind == Ref::constant) value = numbers_.wide[static_cast<size_t>(ref.index)];
    if (ref.kind != Ref::value) return ref.kind == Ref::constant;
    const Value& found = this->value(ref.index);
    value = found.numbers[0];
    return found.along == Along::all;
}

Generated Stages::generated(Ref ref) const {
    const uint64_t channel = std::max<uint64_t>(1, extents_.channel());
    if (ref.kind == Ref::value) {
        const Value& value = this->value(ref.index);
        if (value.along == Along::each) {
            Generated made{Generated::elements};
            made.stored = value.elements.data();
            made.wide = wide_;
            return made;
        }
        const uint64_t inner = value.along == Along::first  ? 1
                               : value.along == Along::last ? std::max<uint64_t>(1, extents_.last)
                               : value.along == Along::inputs
                                   ? std::max<uint64_t>(1, channel / std::max<uint64_t>(1, extents_.second))
                                   : channel;
        Generated made{Generated::numbers, inner, value.numbers.size(), value.numbers.data()};
        if (inner == 1 && !wide_) {
            if (value.narrow.empty()) value.narrow.assign(value.numbers.begin(), value.numbers.end());
            made.narrow = value.narrow.data();
        }
        return made;
    }
    const Made& made = program_.made[static_cast<size_t>(ref.index)];
    double args[3] = {};
    for (int k = 0; k < arity(made.kind); ++k) {
        if (!number(made.args[k], args[k])) throw Error(Code::invalid, "a generated operand takes single numbers");
    }
    switch (made.kind) {
        case Made::index:
            if (made.along == Along::first) return {Generated::index, channel, std::max<uint64_t>(1, extents_.first)};
            if (made.along == Along::last) return {Generated::index, 1, std::max<uint64_t>(1, extents_.last)};
            return {Generated::index,
                    extents_.axes < 2 ? 1 : std::max<uint64_t>(1, channel / std::max<uint64_t>(1, extents_.second)),
                    std::max<uint64_t>(1, extents_.second)};
        case Made::within: return {Generated::within, 1, 1, nullptr, args[0]};
        default: break;
    }
    const auto word = [](double x) { return x >= 0 && x <= UINT32_MAX ? static_cast<uint32_t>(x) : 0; };
    Generated drawn{made.kind == Made::uniform ? Generated::uniform : Generated::normal};
    drawn.key[0] = word(args[0]);
    drawn.key[1] = word(args[1]);
    drawn.draw = word(args[2]);
    return drawn;
}

std::vector<double> Stages::of_whole_tensor() const {
    std::vector<double> found;
    for (size_t k = 0; k < values_.size(); ++k) {
        if (values_[k].along == Along::all) found.push_back(value(static_cast<int>(k)).numbers[0]);
    }
    return found;
}

}  // namespace sds
