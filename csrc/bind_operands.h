// How Python describes operands that are computed (operands/encoding.py, low_rank.py), as the engine takes them.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>

#include "encoding.h"
#include "low_rank.h"

namespace sds {

// (kind, source, offset, count)
inline Companion make_companion(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    return {static_cast<Companion::Kind>(part[0].cast<int>()), part[1].cast<uint32_t>(), part[2].cast<uint64_t>(),
            part[3].cast<uint64_t>()};
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

// (form, rows, columns, rank, inner, (part, …))
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
    return made;
}

// (kind, rows, columns, start, left, right or None)
inline std::shared_ptr<const LowRank> make_low_rank(const pybind11::handle& item) {
    const auto part = pybind11::cast<pybind11::tuple>(item);
    LowRank made{static_cast<LowRank::Kind>(part[0].cast<int>()),
                 part[1].cast<uint64_t>(),
                 part[2].cast<uint64_t>(),
                 part[3].cast<uint64_t>(),
                 make_matrix(part[4]),
                 {}};
    if (!part[5].is_none()) made.right = make_matrix(part[5]);
    return std::make_shared<const LowRank>(std::move(made));
}

}  // namespace sds
