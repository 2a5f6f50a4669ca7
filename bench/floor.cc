// The floor of the end-to-end benchmark: the least work that any program must do that turns these inputs into a file
// of that size. Every input byte is read once (pread), every output byte is written once (pwrite), by some threads,
// in page-aligned tiles. No arithmetic: what is written is whatever was read last. With `reserved` the output's space
// is reserved first, which lets several writers work beside each other.
//
//     floor plain|reserved OUT OUT_BYTES THREADS INPUT...
//
// prints the seconds of the work, without the process's own start
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr long long kTile = 256 << 10;
constexpr long long kPage = 4096;

struct Input {
    int descriptor;
    long long size;
    long long stride;  // bytes that belong to one tile of the output
};

[[noreturn]] void fail(const char* what) {
    std::perror(what);
    std::exit(1);
}

void read_all(int descriptor, char* buffer, long long begin, long long end) {
    while (begin < end) {
        const ssize_t got = pread(descriptor, buffer, std::min(kTile, end - begin), begin);
        if (got <= 0) fail("pread");
        begin += got;
    }
}

void write_all(int descriptor, const char* buffer, long long begin, long long end) {
    while (begin < end) {
        const ssize_t put = pwrite(descriptor, buffer, end - begin, begin);
        if (put <= 0) fail("pwrite");
        buffer += put;
        begin += put;
    }
}

void reserve(int descriptor, long long bytes) {
#ifdef __APPLE__
    if (ftruncate(descriptor, bytes) != 0) fail("ftruncate");
#else
    errno = posix_fallocate(descriptor, 0, bytes);
    if (errno != 0) fail("posix_fallocate");
#endif
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 6) {
        std::fprintf(stderr, "usage: floor plain|reserved OUT OUT_BYTES THREADS INPUT...\n");
        return 2;
    }
    const auto started = std::chrono::steady_clock::now();
    const long long out_size = std::atoll(argv[3]);
    const int threads = std::max(1, std::atoi(argv[4]));
    const long long tiles = (out_size + kTile - 1) / kTile;
    const int out = open(argv[2], O_CREAT | O_TRUNC | O_WRONLY, 0666);
    if (out < 0) fail(argv[2]);
    if (out_size > 0 && std::strcmp(argv[1], "reserved") == 0) reserve(out, out_size);

    std::vector<Input> inputs;
    for (int i = 5; i < argc; ++i) {
        const int descriptor = open(argv[i], O_RDONLY);
        struct stat status;
        if (descriptor < 0 || fstat(descriptor, &status) != 0) fail(argv[i]);
        const long long share = tiles ? (status.st_size + tiles - 1) / tiles : 0;
        inputs.push_back({descriptor, static_cast<long long>(status.st_size), (share + kPage - 1) / kPage * kPage});
    }

    std::atomic<long long> next{0};
    const auto work = [&] {
        char* buffer = static_cast<char*>(std::aligned_alloc(kPage, kTile));
        if (buffer == nullptr) fail("aligned_alloc");
        std::memset(buffer, 0, kTile);
        for (long long tile; (tile = next.fetch_add(1)) < tiles;) {
            for (const Input& input : inputs) {
                const long long begin = tile * input.stride;
                read_all(input.descriptor, buffer, begin, std::min(input.size, begin + input.stride));
            }
            write_all(out, buffer, tile * kTile, std::min(out_size, (tile + 1) * kTile));
        }
        std::free(buffer);
    };
    std::vector<std::thread> workers;
    for (int i = 0; i < threads; ++i) workers.emplace_back(work);
    for (std::thread& worker : workers) worker.join();
    if (close(out) != 0) fail("close");
    std::printf("%.6f\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count());
    return 0;
}
