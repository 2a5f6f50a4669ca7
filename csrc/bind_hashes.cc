// SHA-256 and CRC-32, as Python has them.
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "bind.h"
#include "crc32.h"
#include "hasher.h"

namespace py = pybind11;

namespace sds {

void bind_hashes(py::module_& m) {
    py::class_<Hasher, std::shared_ptr<Hasher>>(m, "Hasher")
        .def(py::init<std::vector<std::shared_ptr<Source>>, std::shared_ptr<Sink>, int64_t, bool, const std::string&>(),
             py::arg("files"), py::arg("sink").none(true) = nullptr, py::arg("body_begin") = -1, py::arg("map") = true,
             py::arg("target") = "")
        .def("start", &Hasher::start, py::call_guard<py::gil_scoped_release>())
        .def("wait", &Hasher::wait, py::arg("seconds"), py::call_guard<py::gil_scoped_release>())
        .def("cancel", &Hasher::cancel, py::call_guard<py::gil_scoped_release>())
        .def("finish", &Hasher::finish, py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("processors", &Hasher::processors)
        .def_property_readonly("files", &Hasher::files)
        .def_property_readonly("body", &Hasher::body);
    m.def(
        "crc32",
        [](const py::handle& data, uint32_t crc) {
            const Bytes view(data, false);
            py::gil_scoped_release release;
            return crc32(crc, static_cast<const uint8_t*>(view.buffer.buf), static_cast<size_t>(view.buffer.len));
        },
        py::arg("data"), py::arg("crc") = 0);
    // The SHA-256 of each buffer; all of them are hashed together, in pieces of `step` bytes (0: in one).
    m.def(
        "sha256",
        [](const std::vector<py::object>& buffers, const std::string& target, size_t step) {
            std::vector<std::unique_ptr<Bytes>> views;
            for (const py::object& buffer : buffers) views.push_back(std::make_unique<Bytes>(buffer, false));
            const HashTarget& chosen = hash_target_named(target);
            std::vector<std::string> digests;
            py::gil_scoped_release release;
            std::vector<Sha256> streams(views.size());
            bool left = true;
            for (size_t at = 0; left; at += step) {
                left = false;
                std::vector<Sha256::Piece> pieces;
                for (size_t i = 0; i < views.size(); ++i) {
                    const size_t size = static_cast<size_t>(views[i]->buffer.len);
                    if (at >= size) continue;
                    const size_t bytes = step ? std::min(step, size - at) : size;
                    pieces.push_back({&streams[i], static_cast<const uint8_t*>(views[i]->buffer.buf) + at, bytes});
                    left |= at + bytes < size;
                }
                Sha256::update(chosen, pieces.data(), pieces.size());
            }
            for (const Sha256& stream : streams) digests.push_back(hex(stream.digest(chosen)));
            return digests;
        },
        py::arg("buffers"), py::arg("target") = "", py::arg("step") = 0);
    m.def("hash_targets", [] {
        std::vector<std::pair<std::string, bool>> rows;
        for (const HashTarget& target : hash_targets()) rows.emplace_back(target.name, target.runs_here());
        return rows;
    });
}

}  // namespace sds
