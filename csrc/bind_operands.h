// How Python describes operands, those that are computed too (operands/encoding.py, low_rank.py), as the engine takes
// them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "encoding.h"
#include "jobs.h"
#include "mixing.h"
#include "view.h"

namespace sds {

// (element bytes, sizes, strides, elements left out) of a strided tensor.
inline std::shared_ptr<View> make_view(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    return std::make_shared<View>(part[0].cast<uint64_t>(), part[1].cast<std::vector<uint64_t>>(),
                                  part[2].cast<std::vector<uint64_t>>(), part[3].cast<uint64_t>());
}

// (kind, source, offset, count, view or None)
inline Companion make_companion(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    Companion made{static_cast<Companion::Kind>(part[0].cast<int>()), part[1].cast<uint32_t>(),
                   part[2].cast<uint64_t>(), part[3].cast<uint64_t>()};
    if (!part[4].is_none()) made.view = make_view(part[4]);
    return made;
}

inline std::shared_ptr<const Encoding> make_encoding(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    const auto perhaps = [](const pybind11::object& companion) {
        return companion.is_none() ? std::nullopt : std::optional(make_companion(companion));
    };
    Encoding made;
    made.codes = static_cast<Coding>(part[0].cast<int>());
    made.low_first = part[1].cast<bool>();
    made.rows = part[2].cast<uint64_t>();
    made.columns = part[3].cast<uint64_t>();
    made.stored_columns = part[4].cast<uint64_t>();
    made.start = part[5].cast<uint64_t>();
    made.block_rows = part[6].cast<uint64_t>();
    made.block_columns = part[7].cast<uint64_t>();
    made.scales = make_companion(part[8]);
    made.tiled = part[9].cast<bool>();
    made.map = perhaps(part[10]);
    made.times = perhaps(part[11]);
    made.per = part[12].cast<uint64_t>();
    made.plus = part[13].cast<float>();
    made.factor = part[14].cast<float>();
    made.group = part[15].cast<uint32_t>();
    made.inner = part[16].cast<uint64_t>();
    made.by_column = perhaps(part[17]);
    return std::make_shared<const Encoding>(made);
}

// (form, rows, columns, rank, inner, (part, …), turned)
inline Matrix make_matrix(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    Matrix made{static_cast<Matrix::Form>(part[0].cast<int>()),
                part[1].cast<uint64_t>(),
                part[2].cast<uint64_t>(),
                part[3].cast<uint64_t>(),
                part[4].cast<uint64_t>(),
                {}};
    for (const pybind11::handle& each : pybind11::cast<pybind11::tuple>(part[5]))
        made.parts.push_back(make_companion(each));
    made.turned = part[6].cast<bool>();
    return made;
}

// (first row, rows, columns)
inline Place make_place(const pybind11::handle& item) {
    const auto [first, rows, columns] = item.cast<std::tuple<uint64_t, uint64_t, uint64_t>>();
    return {first, rows, columns};
}

// (kind, rows, columns, place, start, left, right or None)
inline std::shared_ptr<const LowRank> make_low_rank(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    LowRank made{static_cast<LowRank::Kind>(part[0].cast<int>()),
                 part[1].cast<uint64_t>(),
                 part[2].cast<uint64_t>(),
                 make_place(part[3]),
                 part[4].cast<uint64_t>(),
                 make_matrix(part[5]),
                 {}};
    if (!part[6].is_none()) made.right = make_matrix(part[6]);
    return std::make_shared<const LowRank>(std::move(made));
}

// (kind, rows, columns, place, turned, size, limit, left, right or None)
inline std::shared_ptr<const Mixing> make_mixing(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    Mixing made{static_cast<Mixing::Kind>(part[0].cast<int>()),
                part[1].cast<uint64_t>(),
                part[2].cast<uint64_t>(),
                make_place(part[3]),
                part[4].cast<bool>(),
                part[5].cast<uint64_t>(),
                part[6].cast<double>(),
                make_matrix(part[7]),
                {}};
    if (!part[8].is_none()) made.right = make_matrix(part[8]);
    return std::make_shared<const Mixing>(std::move(made));
}

inline Element element_from(int code) {
    if (code < 0 || code >= kElements) throw Error(Code::invalid, "unknown dtype code");
    return static_cast<Element>(code);
}

// An operand is (source, dtype, offset), then the view of a strided one, or None and what describes a
// computed one: (0, encoding) or (1, low rank).
inline JobOperand make_operand(const pybind11::handle& item) {
    const pybind11::tuple part = pybind11::cast<pybind11::tuple>(item);
    JobOperand operand{part[0].cast<uint32_t>(), element_from(part[1].cast<int>()), part[2].cast<uint64_t>()};
    if (part.size() > 3 && !part[3].is_none()) operand.how = std::shared_ptr<const View>(make_view(part[3]));
    if (part.size() > 4) {
        const pybind11::tuple made = pybind11::cast<pybind11::tuple>(part[4]);
        if (made[0].cast<int>() == 0) operand.how = make_encoding(made[1]);
        if (made[0].cast<int>() == 1) operand.how = make_low_rank(made[1]);
    }
    return operand;
}

}  // namespace sds
