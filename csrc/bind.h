// What the parts of the Python module _native share.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace sds {

inline pybind11::str as_text(const std::string& bytes) {  // file names may hold any bytes
    return pybind11::reinterpret_steal<pybind11::str>(
        PyUnicode_DecodeUTF8(bytes.data(), static_cast<Py_ssize_t>(bytes.size()), "surrogateescape"));
}

struct Bytes {  // a contiguous Python buffer, held for the length of a call
    explicit Bytes(pybind11::handle object, bool writable) {
        if (PyObject_GetBuffer(object.ptr(), &buffer, writable ? PyBUF_WRITABLE : PyBUF_SIMPLE) != 0) {
            throw pybind11::error_already_set();
        }
    }
    ~Bytes() { PyBuffer_Release(&buffer); }
    Bytes(const Bytes&) = delete;
    Py_buffer buffer;
};

void bind_files(pybind11::module_& m);
void bind_hashes(pybind11::module_& m);
void bind_runs(pybind11::module_& m);
void bind_arrays(pybind11::module_& m);

}  // namespace sds
