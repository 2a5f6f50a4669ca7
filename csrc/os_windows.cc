// The operating system, Windows side. Paths are UTF-8 above and UTF-16 here.
#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>
#include <xmmintrin.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "error.h"
#include "os.h"

namespace sds::os {

namespace {

std::wstring wide(const std::string& text) {
    const int length = MultiByteToWideChar(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), nullptr, 0);
    std::wstring result(static_cast<size_t>(length), L'\0');
    MultiByteToWideChar(CP_UTF8, 0, text.data(), static_cast<int>(text.size()), result.data(), length);
    return result;
}

[[noreturn]] void fail(DWORD error, const std::string& what) {
    Code code = Code::io;
    if (error == ERROR_FILE_NOT_FOUND || error == ERROR_PATH_NOT_FOUND || error == ERROR_INVALID_NAME)
        code = Code::not_found;
    if (error == ERROR_ACCESS_DENIED || error == ERROR_SHARING_VIOLATION || error == ERROR_WRITE_PROTECT)
        code = Code::permission;
    if (error == ERROR_DISK_FULL || error == ERROR_HANDLE_DISK_FULL) code = Code::no_space;
    if (error == ERROR_ALREADY_EXISTS || error == ERROR_FILE_EXISTS) code = Code::exists;
    char text[256] = "";
    FormatMessageA(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS | FORMAT_MESSAGE_MAX_WIDTH_MASK, nullptr,
                   error, 0, text, sizeof text, nullptr);
    throw Error(code, what + ": " + text);
}

HANDLE handle_of(Handle file) { return reinterpret_cast<HANDLE>(file); }

OVERLAPPED at(uint64_t offset) {
    OVERLAPPED place = {};
    place.Offset = static_cast<DWORD>(offset);
    place.OffsetHigh = static_cast<DWORD>(offset >> 32);
    return place;
}

std::string folder_of(const std::string& path) {
    const size_t slash = path.find_last_of("/\\");
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

void refuse_special(const std::string& path, DWORD attributes) {
    if (attributes & FILE_ATTRIBUTE_DIRECTORY) throw Error(Code::not_regular, path + ": is a folder, not a file");
    if (attributes & FILE_ATTRIBUTE_DEVICE) throw Error(Code::not_regular, path + ": is a device, not a file");
}

}  // namespace

Handle open_read(const std::string& path) {
    const std::wstring name = wide(path);
    const DWORD attributes = GetFileAttributesW(name.c_str());
    if (attributes == INVALID_FILE_ATTRIBUTES) fail(GetLastError(), path);
    refuse_special(path, attributes);
    const HANDLE file = CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE,
                                    nullptr, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) fail(GetLastError(), path);
    if (GetFileType(file) != FILE_TYPE_DISK) {
        CloseHandle(file);
        throw Error(Code::not_regular, path + ": is a device, not a file");
    }
    return reinterpret_cast<Handle>(file);
}

Handle open_past_cache(Handle) { return kNone; }

Stat stat(Handle file) {
    BY_HANDLE_FILE_INFORMATION info;
    if (!GetFileInformationByHandle(handle_of(file), &info)) fail(GetLastError(), "cannot examine an open file");
    const auto join = [](DWORD high, DWORD low) { return static_cast<uint64_t>(high) << 32 | low; };
    Stat result;
    result.size = join(info.nFileSizeHigh, info.nFileSizeLow);
    result.device = info.dwVolumeSerialNumber;
    result.inode = join(info.nFileIndexHigh, info.nFileIndexLow);
    result.mtime_ns =
        static_cast<int64_t>(join(info.ftLastWriteTime.dwHighDateTime, info.ftLastWriteTime.dwLowDateTime)) * 100;
    return result;
}

Stat stat(const std::string& path) {
    const Handle file = open_read(path);
    try {
        const Stat found = stat(file);
        close(file);
        return found;
    } catch (...) {
        close(file);
        throw;
    }
}

std::string absolute(const std::string& path) { return path; }

size_t most_open_files() { return SIZE_MAX; }  // millions of handles

size_t read_at(Handle file, void* to, size_t bytes, uint64_t offset) {
    size_t got = 0;
    while (got < bytes) {
        OVERLAPPED place = at(offset + got);
        DWORD now = 0;
        const DWORD want = static_cast<DWORD>(std::min<size_t>(bytes - got, 1u << 30));
        if (!ReadFile(handle_of(file), static_cast<uint8_t*>(to) + got, want, &now, &place)) {
            if (GetLastError() == ERROR_HANDLE_EOF) break;
            fail(GetLastError(), "cannot read");
        }
        if (now == 0) break;
        got += now;
    }
    return got;
}

size_t read_past_cache(Handle, void*, size_t, uint64_t) { return 0; }
double cached_share(Handle, uint64_t) { return 1; }

void close(Handle file) noexcept {
    if (file != kNone) CloseHandle(handle_of(file));
}

const uint8_t* map(Handle file, uint64_t size, bool copy_on_write) {
    if (size == 0) return nullptr;
    const HANDLE section =
        CreateFileMappingW(handle_of(file), nullptr, copy_on_write ? PAGE_WRITECOPY : PAGE_READONLY, 0, 0, nullptr);
    if (section == nullptr) fail(GetLastError(), "cannot map the file");
    const void* view = MapViewOfFile(section, copy_on_write ? FILE_MAP_COPY : FILE_MAP_READ, 0, 0, 0);
    const DWORD error = GetLastError();
    CloseHandle(section);  // the view keeps it alive
    if (view == nullptr) fail(error, "cannot map the file");
    return static_cast<const uint8_t*>(view);
}

void unmap(const uint8_t* view, uint64_t) noexcept {
    if (view != nullptr) UnmapViewOfFile(view);
}

void release_pages(const uint8_t*, uint64_t) noexcept {}
bool maps_cheaply() { return false; }

bool can_guard() { return false; }  // so inputs are always read, never streamed through a mapping

bool guarded(void (*work)(void*), void* context) {
    work(context);
    return true;
}

FaultGuard::FaultGuard() {}
FaultGuard::~FaultGuard() {}

Pending create_beside(const std::string& target) {
    Pending pending;
    pending.target = target;
    const DWORD attributes = GetFileAttributesW(wide(target).c_str());
    if (attributes != INVALID_FILE_ATTRIBUTES) refuse_special(target, attributes);
    std::random_device random;
    char name[48];
    std::snprintf(name, sizeof name, ".sdsurgery-%lu-%08x.tmp", GetCurrentProcessId(), random());
    const std::string folder = folder_of(target);
    pending.temporary = folder == "." ? name : folder + name;
    const HANDLE file =
        CreateFileW(wide(pending.temporary).c_str(), GENERIC_READ | GENERIC_WRITE | DELETE,
                    FILE_SHARE_READ | FILE_SHARE_DELETE, nullptr, CREATE_NEW, FILE_ATTRIBUTE_NORMAL, nullptr);
    if (file == INVALID_HANDLE_VALUE) {
        pending.temporary.clear();
        fail(GetLastError(), folder + ": cannot create a file in this folder");
    }
    pending.file = reinterpret_cast<Handle>(file);
    return pending;
}

uint64_t free_bytes(const std::string& folder) {
    ULARGE_INTEGER available;
    if (!GetDiskFreeSpaceExW(wide(folder.empty() ? "." : folder).c_str(), &available, nullptr, nullptr))
        return UINT64_MAX;
    return available.QuadPart;
}

void reserve(const Pending& pending, uint64_t size) {
    LARGE_INTEGER end;
    end.QuadPart = static_cast<LONGLONG>(size);
    if (!SetFilePointerEx(handle_of(pending.file), end, nullptr, FILE_BEGIN) ||
        !SetEndOfFile(handle_of(pending.file))) {
        fail(GetLastError(), folder_of(pending.target) + ": no room for the output (" + std::to_string(size) +
                                 " bytes needed, " + std::to_string(free_bytes(folder_of(pending.target))) + " free)");
    }
}

void write_at(Handle file, const void* from, size_t bytes, uint64_t offset) {
    size_t done = 0;
    while (done < bytes) {
        OVERLAPPED place = at(offset + done);
        DWORD now = 0;
        const DWORD want = static_cast<DWORD>(std::min<size_t>(bytes - done, 1u << 30));
        if (!WriteFile(handle_of(file), static_cast<const uint8_t*>(from) + done, want, &now, &place)) {
            fail(GetLastError(), "cannot write the output");
        }
        done += now;
    }
}

void start_flush(Handle, uint64_t, uint64_t) noexcept {}

void publish(Pending& pending, bool replace, bool sync) {
    if (sync && !FlushFileBuffers(handle_of(pending.file)))
        fail(GetLastError(), pending.target + ": cannot flush to disk");
    close(pending.file);
    pending.file = kNone;
    const DWORD flags = (replace ? MOVEFILE_REPLACE_EXISTING : 0u) | (sync ? MOVEFILE_WRITE_THROUGH : 0u);
    if (!MoveFileExW(wide(pending.temporary).c_str(), wide(pending.target).c_str(), flags)) {
        fail(GetLastError(), pending.target + ": cannot be created or replaced");
    }
    pending.temporary.clear();
}

void discard(Pending& pending) noexcept {
    close(pending.file);
    pending.file = kNone;
    if (!pending.temporary.empty()) DeleteFileW(wide(pending.temporary).c_str());
    pending.temporary.clear();
}

size_t page_size() { return 4096; }

unsigned usable_cpus() {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return std::max(1u, static_cast<unsigned>(info.dwNumberOfProcessors));
}

IeeeMode::IeeeMode() {
    saved_ = _mm_getcsr();
    _mm_setcsr(0x1f80);
}
IeeeMode::~IeeeMode() { _mm_setcsr(static_cast<unsigned>(saved_)); }

}  // namespace sds::os
