// Source, Mapping and Sink, as Python has them.
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <vector>

#include "bind.h"
#include "bind_operands.h"
#include "file.h"

namespace py = pybind11;

namespace sds {

namespace {

// A source of buffers, which count as if they lay one behind the other. It holds them, and copies nothing.
std::shared_ptr<Source> source_of_buffers(const py::args& buffers) {
    using Held = std::vector<std::unique_ptr<Bytes>>;
    // The last user may be a thread without the GIL.
    const auto release = [](Held* held) {
        const py::gil_scoped_acquire acquire;
        delete held;
    };
    const std::shared_ptr<Held> held(new Held, release);
    std::vector<MemoryPiece> pieces;
    for (const py::handle& buffer : buffers) {
        held->push_back(std::make_unique<Bytes>(buffer, false));
        const Py_buffer& view = held->back()->buffer;
        pieces.push_back({static_cast<const uint8_t*>(view.buf), static_cast<uint64_t>(view.len)});
    }
    return std::make_shared<Source>(pieces, held);
}

}  // namespace

void bind_files(py::module_& m) {
    py::class_<Mapping, std::shared_ptr<Mapping>>(m, "Mapping", py::buffer_protocol())
        .def("__len__", &Mapping::size)
        .def_buffer([](Mapping& self) {
            return py::buffer_info(const_cast<uint8_t*>(self.data()), 1, py::format_descriptor<uint8_t>::format(), 1,
                                   {static_cast<py::ssize_t>(self.size())}, {1}, /*readonly=*/!self.copy_on_write());
        });

    py::class_<Source, std::shared_ptr<Source>>(m, "Source")
        .def(py::init([](const py::bytes& path) { return std::make_shared<Source>(std::string(path)); }),
             py::arg("path"))
        .def_static("memory", &source_of_buffers)
        .def_property_readonly("in_memory", &Source::in_memory)
        .def_property_readonly("path", [](const Source& self) { return as_text(self.path()); })
        .def_property_readonly("size", &Source::size)
        .def_property_readonly("identity",
                               [](const Source& self) {
                                   const os::Stat& id = self.identity();
                                   return std::make_tuple(id.device, id.inode, id.size, id.mtime_ns);
                               })
        .def(
            "read",
            [](const Source& self, uint64_t offset, uint64_t count) {
                if (offset > self.size() || count > self.size() - offset) {
                    throw Error(Code::truncated, self.path() + ": a read past the end of the file");
                }
                py::bytes data = py::reinterpret_steal<py::bytes>(
                    PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(count)));
                if (!data) throw py::error_already_set();
                char* to = PyBytes_AS_STRING(data.ptr());
                py::gil_scoped_release release;
                self.read(to, count, offset);
                return data;
            },
            py::arg("offset"), py::arg("count"))
        .def(
            "read_into",
            [](const Source& self, uint64_t offset, const py::handle& buffer) {
                const Bytes view(buffer, true);
                py::gil_scoped_release release;
                self.read(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("buffer"))
        // Bytes of the row-major image of a strided tensor, from its byte `first` on.
        .def(
            "gather_into",
            [](Source& self, uint64_t offset, const py::handle& view, uint64_t first, const py::handle& buffer) {
                const Bytes into(buffer, true);
                const auto shape = make_view(view);
                py::gil_scoped_release release;
                const size_t bytes = static_cast<size_t>(into.buffer.len);
                std::vector<uint8_t> room(bytes + 2 * shape->item());
                std::memcpy(into.buffer.buf, self.gather(*shape, offset, first, bytes, room.data()), bytes);
            },
            py::arg("offset"), py::arg("view"), py::arg("first"), py::arg("buffer"))
        .def("map", &Source::mapping, py::arg("copy_on_write") = false)
        .def("check_unchanged", &Source::check_unchanged)
        .def_property_readonly("touched", &Source::touched)
        .def("settle", &Source::settle)
        .def("close", &Source::close);

    py::class_<Sink, std::shared_ptr<Sink>>(m, "Sink")
        .def(py::init([](const py::bytes& target, uint64_t size) {
                 const std::string path = target;
                 py::gil_scoped_release release;
                 return std::make_shared<Sink>(path, size);
             }),
             py::arg("target"), py::arg("size"))
        .def_property_readonly("size", &Sink::size)
        .def_property_readonly("committed", &Sink::committed)
        .def_property_readonly("leftovers",
                               [](const Sink& self) {
                                   py::list names;
                                   for (const std::string& name : self.leftovers()) names.append(as_text(name));
                                   return names;
                               })
        .def(
            "write",
            [](Sink& self, uint64_t offset, const py::handle& data) {
                const Bytes view(data, false);
                py::gil_scoped_release release;
                self.write(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("data"))
        .def(
            "read_into",
            [](const Sink& self, uint64_t offset, const py::handle& buffer) {
                const Bytes view(buffer, true);
                py::gil_scoped_release release;
                self.read(view.buffer.buf, static_cast<size_t>(view.buffer.len), offset);
            },
            py::arg("offset"), py::arg("buffer"))
        .def_property("watermark", &Sink::watermark, &Sink::set_watermark)
        .def("commit", &Sink::commit, py::arg("replace"), py::arg("sync"), py::call_guard<py::gil_scoped_release>())
        .def("abort", &Sink::abort, py::call_guard<py::gil_scoped_release>());
}

}  // namespace sds
