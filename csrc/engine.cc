#include "engine.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#include "engine_buffers.h"
#include "threads.h"

namespace sds {

namespace {

// Of output: large enough that a system call is cheap, small enough that the tile is still in the cache when it is
// written. The page cache takes folios of the size of the write: on a virtual machine those of 512 KiB can take twice
// as long as ones of 256 KiB, whenever the memory for them has to be fetched from the host; 128 KiB cost a fifth more.
constexpr uint64_t kTile = 256 << 10;
constexpr uint64_t kChunk = 256 << 10;  // of one operand: read, used and overwritten while in L2
constexpr uint64_t kLeastChunk = 16 << 10;
constexpr uint64_t kInputBudget = 8 << 20;  // of a worker's input buffers, however many inputs
constexpr uint64_t kColdChunk = 1 << 20;    // a cold disk wants long reads, and several in flight
constexpr uint64_t kColdBudget = 40 << 20;
constexpr unsigned kColdWorkers = 8;  // that many, however few the processors
// Of mapped input, until it is released: each time costs an interrupt on every processor that works for us.
constexpr uint64_t kMappedMost = 32 << 20;
// Of mapped tensors that are read several times and stay mapped until they are done, for all workers together: a
// virtual machine may take a microsecond for every page each time that it is mapped.
constexpr uint64_t kMappedTensors = 320 << 20;
constexpr uint64_t kFlushStretch = 32 << 20;
// Of memory, while the buffers are made: for what else the run allocates.
constexpr size_t kKeptFree = 1 << 20;

}  // namespace

// ---- Preparation, on the caller's thread.

Run::Run(std::vector<std::shared_ptr<Source>> sources, std::vector<std::shared_ptr<Program>> programs,
         std::vector<Fill> fills, std::vector<Job> jobs, std::vector<Check> checks,
         const std::vector<std::pair<uint64_t, uint64_t>>& sums, std::vector<Output> outputs, RunOptions options)
    : sources_(std::move(sources)),
      programs_(std::move(programs)),
      fills_(std::move(fills)),
      outputs_(std::move(outputs)),
      jobs_(admitted(std::move(jobs), sources_, programs_, fills_, outputs_)),
      checksums_(jobs_, std::move(checks), sums),
      windows_(sources_.size()),
      options_(options),
      target_(target_named(options.target)) {
    const bool reduces =
        std::any_of(jobs_.begin(), jobs_.end(), [](const Job& job) { return job.kind == Job::reduce; });
    for (const Job& job : jobs_) {
        for (const JobOperand& operand : job.operands) {
            if (operand.view() && !sources_[operand.source]->in_memory() && !windows_[operand.source])
                windows_[operand.source] = sources_[operand.source]->mapping();
        }
        most_operands_ = std::max(most_operands_, job.operands.size());
        if (reduces) reductions_.add_job(job.kind == Job::reduce ? job.count : 0);
    }
    if (options_.tile_bytes == 0) options_.tile_bytes = kTile;
    options_.tile_bytes = (options_.tile_bytes + kPage - 1) / kPage * kPage;
    if (!jobs_.empty()) begin_ = jobs_.front().out_offset;
    add_tiles();
    watermark_ = begin_;
    if (outputs_.empty()) values_.resize(jobs_.size());
    finished_.resize(tiles_.size());
    tallies_.resize(std::max<size_t>(1, outputs_.size()), std::vector<Tally>(jobs_.size()));
    chunk_bytes_ =
        std::max(kLeastChunk, std::min(kChunk, kInputBudget / std::max<size_t>(1, most_operands_) / kPage * kPage));
    bool cold = false;
    for (const auto& source : sources_) {
        Io io = source->resolve(options_.io);
        std::shared_ptr<Mapping> mapping;
        if (io == Io::direct && !source->can_read_past_cache()) io = Io::pread;
        if (io == Io::mmap) {
            try {
                mapping = source->mapping();
            } catch (const Error&) {
                if (options_.io == Io::mmap) throw;
                io = Io::pread;  // file systems that can't map files
            }
        }
        io_.push_back(io);
        mappings_.push_back(std::move(mapping));
        taps_.push_back(io == Io::direct ? source->tap() : nullptr);
        cold |= io_.back() == Io::direct;
    }
    for (const Job& job : jobs_) {
        if (has_stages(job)) continue;  // what is read twice goes through the page cache
        for (size_t k = 0; k < job.operands.size(); ++k) {
            const JobOperand& operand = job.operands[k];
            if (taps_[operand.source] && !operand.view() && !operand.is_made())
                taps_[operand.source]->expect(operand.offset, operand.offset + job.count * job.operand_bytes(k));
        }
    }
    worker_count_ = options_.threads ? options_.threads : std::min(os::usable_cpus(), 32u);
    if (cold) {
        worker_count_ = std::max(worker_count_, kColdWorkers);
        const uint64_t share = kColdBudget / worker_count_;
        const uint64_t left = share > options_.tile_bytes ? share - options_.tile_bytes : 0;
        chunk_bytes_ =
            std::max(chunk_bytes_, std::min(kColdChunk, left / std::max<size_t>(1, most_operands_) / kPage * kPage));
    }
    worker_count_ = static_cast<unsigned>(std::max<uint64_t>(1, std::min<uint64_t>(worker_count_, tiles_.size())));
}

// Ends at multiples of the tile size, and around every job that has stages.
void Run::add_tiles() {
    uint64_t at = begin_;
    for (size_t i = 0; i < jobs_.size();) {
        const Job& job = jobs_[i];
        size_t next = i + 1;
        if (has_stages(job)) {
            if (job.out_end() > at) tiles_.push_back({at, job.out_end(), i});
            at = std::max(at, job.out_end());
        } else {
            while (next < jobs_.size() && !has_stages(jobs_[next])) ++next;
            const uint64_t end = jobs_[next - 1].out_end();
            while (at < end) {
                const uint64_t to = std::min(end, (at / options_.tile_bytes + 1) * options_.tile_bytes);
                while (i + 1 < next && jobs_[i].out_end() <= at) ++i;
                tiles_.push_back({at, to, i});
                at = to;
            }
        }
        i = next;
    }
}

Run::~Run() {
    cancel();
    join();
}

void Run::join() {
    std::lock_guard<std::mutex> joining(threads_mutex_);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    if (flusher_.joinable()) flusher_.join();
    guard_.reset();
    buffers_.clear();  // of workers that were never started
}

unsigned Run::workers() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return worker_count_;
}

std::vector<std::vector<Tally>> Run::tallies() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return tallies_;
}

Reduction Run::reduction(size_t job) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return reductions_.total(job);
}

std::vector<double> Run::values(size_t job) const {
    std::lock_guard<std::mutex> lock(mutex_);
    return values_.empty() ? std::vector<double>() : values_.at(job);
}

uint64_t Run::buffer_bytes() const {
    return workers() * (tallies_.size() * (options_.tile_bytes + kPage) + most_operands_ * (chunk_bytes_ + 3 * kPage));
}

void Run::start() {
    std::lock_guard<std::mutex> starting(threads_mutex_);
    std::lock_guard<std::mutex> lock(mutex_);
    if (started_) throw Error(Code::invalid, "a run starts once");
    started_ = true;
    const auto mapped = [](const std::shared_ptr<Mapping>& mapping) { return mapping != nullptr; };
    if (std::any_of(mappings_.begin(), mappings_.end(), mapped) ||
        std::any_of(windows_.begin(), windows_.end(), mapped))
        guard_.emplace();
    threads_.reserve(worker_count_);
    make_buffers();
    try {
        while (running_ < worker_count_) {
            threads_.push_back(started([this] { work(); }));
            ++running_;
        }
        if (options_.start_flushing && !outputs_.empty()) flusher_ = started([this] { flush_behind(); });
    } catch (const std::system_error&) {  // no more threads can be started: the others do all the work
        if (running_ == 0) throw Error(Code::memory, "the system cannot start a thread");
        worker_count_ = running_;
    }
}

bool Run::wait(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return running_ == 0; });
}

void Run::cancel() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    stop_ = true;
    changed_.notify_all();
}

void Run::finish() {
    join();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (error_) throw *error_;
        if (out_of_memory_) throw Error(Code::memory, "out of memory for the workers' buffers");
        if (cancelled_) throw Error(Code::cancelled, "cancelled");
    }
    for (const auto& source : sources_) source->check_unchanged();
}

// Called where an exception was caught on a worker's thread, which another one would end the process on.
void Run::fail(const Error& error) noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
        if (!error_) error_ = std::make_unique<Error>(error);
    } catch (const std::bad_alloc&) {
        out_of_memory_ = true;
    }
    stop_ = true;
}

void Run::fail_for_memory() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    out_of_memory_ = stop_ = true;
}

// Under the lock, before the threads: where there is no room for all workers' buffers, those that have some do all the
// work. Some memory is kept free meanwhile, for what a thread needs to start.
void Run::make_buffers() {
    const std::vector<char> kept(kKeptFree);
    try {
        while (buffers_.size() < worker_count_) {
            buffers_.push_back(
                std::make_unique<Buffers>(options_.tile_bytes, chunk_bytes_, most_operands_, tallies_.size()));
        }
    } catch (const std::bad_alloc&) {
        if (buffers_.empty()) throw Error(Code::memory, "out of memory for the workers' buffers");
        worker_count_ = static_cast<unsigned>(buffers_.size());
    }
}

std::unique_ptr<Run::Buffers> Run::take_buffers() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Buffers> taken = std::move(buffers_.back());
    buffers_.pop_back();
    return taken;
}

void Run::work() {
    const os::IeeeMode ieee;
    try {
        const std::unique_ptr<Buffers> held = take_buffers();
        Buffers& buffers = *held;
        while (!stop_) {
            const uint64_t number = next_tile_++;
            if (number >= tiles_.size()) break;
            const Tile& tile = tiles_[number];
            if (has_stages(jobs_[tile.job])) {
                do_stages(tile, buffers);
            } else {
                do_tile(tile, buffers);
                bytes_done_ += tile.end - tile.begin;
            }
            tile_done(number);
        }
    } catch (const Error& error) {
        fail(error);
    } catch (const std::bad_alloc&) {
        fail_for_memory();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    --running_;
    ended_.notify_all();
    changed_.notify_all();
}

// ---- What the workers report.

// Records the CRC-32 of the checked operands' bytes behind `count` elements of a job from element `first` on.
void Run::add_checksums(size_t job_index, uint64_t first, uint64_t count, const uint32_t* crcs) {
    const Job& job = jobs_[job_index];
    for (size_t k = 0; k < job.operands.size(); ++k) {
        const JobOperand& operand = job.operands[k];
        if (operand.check < 0) continue;
        const uint64_t unit = job.operand_bytes(k);
        const bool differs =
            checksums_.read(operand.check, crcs[k], count * unit, operand.offset + (first + count) * unit);
        if (differs && options_.refuse_damaged) {
            throw Error(Code::damaged,
                        sources_[operand.source]->path() + ": damaged: the bytes from " +
                            std::to_string(checksums_.check(operand.check).offset) +
                            " on differ from the CRC-32 that the file states",
                        static_cast<int64_t>(job_index));
        }
        if (job.kind == Job::copy && job.sum >= 0)
            checksums_.written(job.sum, crcs[k], count, job.out_offset + first + count);
    }
}

void Run::add_tally(size_t output, size_t job_index, const Tally& tally) {
    const int64_t job = static_cast<int64_t>(job_index);
    if (options_.refuse_nonfinite && tally.nonfinite) throw Error(Code::nonfinite, "NaN or Inf", job);
    if (options_.refuse_overflow && tally.overflow) throw Error(Code::overflow, "overflow", job);
    std::lock_guard<std::mutex> lock(mutex_);
    tallies_[output][job_index].nonfinite += tally.nonfinite;
    tallies_[output][job_index].overflow += tally.overflow;
}

void Run::release_mapped() {
    // Whole mappings, now and then: a fault maps the pages around it too (all of a large page), so a piece that is
    // released by itself comes back with its neighbour. What another worker still needs is mapped again at no great
    // cost.
    if (mapped_bytes_ >= kMappedMost && mapped_bytes_.exchange(0) >= kMappedMost) {
        for (const auto& mapping : mappings_) {
            if (mapping) os::release_pages(mapping->data(), mapping->size());
        }
    }
}

bool Run::may_stay_mapped(const Job& job) const {
    uint64_t bytes = 0;
    for (size_t k = 0; k < job.operands.size(); ++k) bytes += job.elements() * job.operand_bytes(k);
    return bytes <= kMappedTensors / worker_count_;
}

void Run::release_tensors(const Job& job) {
    for (size_t k = 0; k < job.operands.size(); ++k) {
        const auto& mapping = mappings_[job.operands[k].source];
        if (!mapping) continue;
        const uint64_t from = job.operands[k].offset, to = from + job.elements() * job.operand_bytes(k);
        const uint64_t begin = from - std::min(from, kFaultAround), end = std::min(mapping->size(), to + kFaultAround);
        os::release_pages(mapping->data() + begin, end - begin);
        mapped_bytes_ += 2 * kFaultAround;  // perhaps, of large pages
    }
    release_mapped();
}

void Run::tile_done(size_t tile) {
    release_mapped();
    std::lock_guard<std::mutex> lock(mutex_);
    finished_[tile] = true;
    if (!finished_[mark_]) return;
    while (mark_ < tiles_.size() && finished_[mark_]) ++mark_;
    watermark_ = tiles_[mark_ - 1].end;
    for (const Output& output : outputs_) output.sink->set_watermark(watermark_ + static_cast<uint64_t>(output.shift));
    changed_.notify_all();
}

// On a thread of its own: begins writing back what is behind the watermark, so that little is left at the end.
void Run::flush_behind() {
    uint64_t flushed = begin_;
    std::unique_lock<std::mutex> lock(mutex_);
    while (running_ > 0) {
        changed_.wait(lock, [&] { return running_ == 0 || watermark_ >= flushed + kFlushStretch; });
        if (stop_) return;
        const uint64_t upto = watermark_;
        lock.unlock();
        for (const Output& output : outputs_)
            output.sink->start_flush(flushed + static_cast<uint64_t>(output.shift), upto - flushed);
        flushed = upto;
        lock.lock();
    }
}

}  // namespace sds
