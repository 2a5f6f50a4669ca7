#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <new>
#include <system_error>

#include "evaluation.h"

namespace sds {

namespace {

constexpr uint64_t kPage = 4096;
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
constexpr uint64_t kMappedLeast = 64 << 10;  // a fault maps that much around it, however little is read
constexpr uint64_t kFlushStretch = 32 << 20;

class PageBuffer {
 public:
    explicit PageBuffer(size_t bytes) : raw_(bytes + kPage) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(raw_.data());
        data_ = raw_.data() + (kPage - at % kPage) % kPage;
    }
    uint8_t* data() { return data_; }

 private:
    std::vector<uint8_t> raw_;
    uint8_t* data_;
};

// The bytes that an encoded operand's codes are.
JobOperand codes_of(const JobOperand& operand) { return {operand.source, Element::u8, operand.offset}; }

}  // namespace

constexpr size_t kKeptFree = 1 << 20;

struct Run::Buffers {
    Buffers(uint64_t tile_bytes, uint64_t chunk_bytes, size_t operands, size_t outputs) {
        for (size_t k = 0; k < outputs; ++k) out.emplace_back(tile_bytes);
        for (size_t k = 0; k < operands; ++k) in.emplace_back(chunk_bytes + 2 * kPage);
    }
    // Zeros between the data, which a file would otherwise take from the tile before.
    void clear(uint64_t at, uint64_t bytes) {
        for (PageBuffer& buffer : out) std::memset(buffer.data() + at, 0, bytes);
    }
    std::vector<PageBuffer> out, in;
    std::map<size_t, Decoder> decoders;  // of the operands that were encoded in some job, by their number
    std::map<size_t, Multiplier> multipliers;
    std::vector<Version> versions;
    std::vector<Stages> stages;  // of the job in work, for each output
    Scratch scratch;
    Reduction reduction;  // of the chunk in work
};

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
            threads_.emplace_back([this] { work(); });
            ++running_;
        }
        if (options_.start_flushing && !outputs_.empty()) flusher_ = std::thread([this] { flush_behind(); });
    } catch (const std::system_error&) {  // no more threads can be started: the others do all the work
        if (running_ == 0) throw Error(Code::io, "the system cannot start a thread");
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
        if (out_of_memory_) throw Error(Code::io, "out of memory for the workers' buffers");
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
        if (buffers_.empty()) throw Error(Code::io, "out of memory for the workers' buffers");
        worker_count_ = static_cast<unsigned>(buffers_.size());
    }
}

std::unique_ptr<Run::Buffers> Run::take_buffers() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<Buffers> taken = std::move(buffers_.back());
    buffers_.pop_back();
    return taken;
}

// ---- The work, on every worker's thread: work → do_tile → do_stretch → fetch.

void Run::work() {
    prepare_to_throw();
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

// Everything that the tile's bytes of the output come from, and one write.
void Run::do_tile(const Tile& tile, Buffers& buffers) {
    const uint64_t low = tile.begin, high = tile.end, base = low - low % kPage;
    uint64_t reached = low;
    for (size_t job_index = tile.job; job_index < jobs_.size() && jobs_[job_index].out_offset < high; ++job_index) {
        const Job* const job = &jobs_[job_index];
        if (job->count == 0) continue;
        const uint64_t from = std::max(job->out_offset, low), to = std::min(job->out_end(), high);
        if (job->kind == Job::reduce) {
            do_chunks(job_index, from - job->out_offset, to - job->out_offset, buffers);
            continue;
        }
        if (from > reached) buffers.clear(reached - base, from - reached);  // padding
        const uint64_t unit = job->element_bytes();
        do_stretch(job_index, (from - job->out_offset) / unit, (to - from) / unit, static_cast<int64_t>(from - base),
                   buffers);
        // A copy's bytes may have been summed as its operand's already.
        if (job->sum >= 0 && !(job->kind == Job::copy && job->operands[0].check >= 0))
            checksums_.written(job->sum, crc32(0, buffers.out[0].data() + (from - base), to - from), to - from, to);
        reached = to;
    }
    if (high > reached) buffers.clear(reached - base, high - reached);
    write(buffers, low - base, high - low, low);
}

// What the buffers hold from their byte `at` on, to where it belongs: `offset` is the first output's.
void Run::write(Buffers& buffers, uint64_t at, uint64_t bytes, uint64_t offset) {
    for (size_t k = 0; k < outputs_.size(); ++k)
        outputs_[k].sink->write(buffers.out[k].data() + at, bytes, offset + static_cast<uint64_t>(outputs_[k].shift));
}

// A job that has stages: what they need of the whole tensor, then its bytes of the output (and the padding before).
void Run::do_stages(const Tile& tile, Buffers& buffers) {
    const Job& job = jobs_[tile.job];
    std::vector<DType> dtypes;
    for (const JobOperand& operand : job.operands) dtypes.push_back(operand.dtype());
    Mixers mixers;
    for (const auto& mixing : job.mixings) mixers.push_back(std::make_shared<const Mixer>(mixing, sources_, target_));
    for (const auto& numbers : job.numbers)
        buffers.stages.emplace_back(*programs_[job.index], *numbers, *job.extents, dtypes, target_, mixers);
    for (size_t stage = 0; stage < programs_[job.index]->stages.size(); ++stage) {
        for (Stages& stages : buffers.stages) stages.begin(stage);
        for (bool ended = false; !ended && !stop_;) {
            bool reads = false;
            for (const Stages& stages : buffers.stages) reads |= stages.reads();
            if (reads) do_stretch(tile.job, 0, job.elements(), -1, buffers);
            ended = true;
            for (Stages& stages : buffers.stages) ended &= !stop_ && stages.end();
        }
    }
    if (outputs_.empty() && !stop_) {
        std::lock_guard<std::mutex> lock(mutex_);
        values_[tile.job] = buffers.stages[0].of_whole_tensor();
    }
    const uint64_t unit = job.element_bytes();
    for (uint64_t at = tile.begin; at < tile.end && !stop_;) {
        const uint64_t to = std::min(tile.end, (at / options_.tile_bytes + 1) * options_.tile_bytes);
        const uint64_t from = std::min(to, std::max(at, job.out_offset)), base = at - at % kPage;
        buffers.clear(at - base, from - at);
        if (to > from) {
            do_stretch(tile.job, (from - job.out_offset) / unit, (to - from) / unit, static_cast<int64_t>(from - base),
                       buffers);
            if (job.sum >= 0)
                checksums_.written(job.sum, crc32(0, buffers.out[0].data() + (from - base), to - from), to - from, to);
        }
        write(buffers, at - base, to - at, at);
        bytes_done_ += to - at;
        at = to;
    }
    buffers.stages.clear();
}

// `count` elements of one job from element `first` on, in chunks that stay in the cache: to byte `at` of the output
// buffers, or (−1) into reductions, those of the stage that has begun if the job has stages.
void Run::do_stretch(size_t job_index, uint64_t first, uint64_t count, int64_t at, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    const bool staged = has_stages(job);
    std::vector<Version>& versions = buffers.versions;
    versions.clear();
    for (size_t k = 0; k < buffers.out.size(); ++k) {
        Version version{at < 0 ? nullptr : buffers.out[k].data() + at};
        if (staged) {
            version.stages = &buffers.stages[k];
            if (at >= 0) {
                version.program = version.stages->last().program.get();
                version.numbers = version.stages->last().numbers.get();
            }
        } else if (job.kind == Job::evaluate) {
            version.program = programs_[job.index].get();
            version.numbers = job.numbers[k].get();
        }
        versions.push_back(version);
    }
    if (job.kind == Job::fill) {
        for (const Version& version : versions)
            target_.fill(fills_[job.index], first, version.out, job.out_dtype, count);
        return;
    }
    uint64_t widest = 1;
    bool mapped = false;
    for (size_t k = 0; k < job.operands.size(); ++k) {
        widest = std::max(widest, job.operand_bytes(k));
        mapped |= io_[job.operands[k].source] == Io::mmap;
    }
    uint64_t most = chunk_bytes_ / widest;
    if (at < 0) most -= most % kReduceBlock;
    for (uint64_t done = 0, now; done < count; done += now) {
        if (staged && stop_) return;
        now = std::min(most, count - done);
        Evaluation work{target_,          job, versions, first + done, now, options_.overflow, buffers.scratch,
                        buffers.reduction};
        try {
            for (size_t k = 0; k < job.operands.size(); ++k) {
                const JobOperand& operand = job.operands[k];
                const uint64_t unit = job.operand_bytes(k), from = (first + done) * unit;
                if (operand.encoding()) {
                    Decoder& decoder = buffers.decoders[k];
                    decoder.prepare(operand.shared<Encoding>(), sources_);
                    const auto [begin, bytes] = decoder.range(first + done, now);
                    work.decoders[k] = &decoder;
                    work.operands[k] = {fetch(codes_of(operand), begin, bytes, decoder.room(bytes + 2 * kPage), true),
                                        operand.dtype()};
                } else if (operand.low_rank()) {
                    work.multipliers[k] = &buffers.multipliers[k];
                    work.multipliers[k]->prepare(operand.shared<LowRank>(), sources_, target_);
                } else if (job.kind == Job::copy && is_read(operand)) {  // to where it is written from
                    sources_[operand.source]->read(versions[0].out, now * unit, operand.offset + from);
                    work.operands[k] = {versions[0].out, operand.dtype()};
                } else {
                    work.operands[k] = {fetch(operand, from, now * unit, buffers.in[k].data(), staged),
                                        operand.dtype()};
                }
            }
        } catch (const Error& error) {
            throw Error(error.code, error.what(), static_cast<int64_t>(job_index));
        }
        if (!mapped) {
            Evaluation::run(&work);
        } else if (!os::guarded(Evaluation::run, &work)) {
            for (const JobOperand& operand : job.operands) sources_[operand.source]->check_unchanged();
            throw Error(Code::truncated, "an input can no longer be read", static_cast<int64_t>(job_index));
        }
        if (staged) release_mapped();
        if (staged && at < 0) continue;
        add_checksums(job_index, first + done, now, work.crcs);
        for (size_t k = 0; k < versions.size() && at >= 0; ++k) {
            if (versions[k].tally.nonfinite || versions[k].tally.overflow) add_tally(k, job_index, versions[k].tally);
            versions[k].tally = {};
            versions[k].out += now * job.element_bytes();
        }
    }
}

// Where `bytes` of an operand from its byte `first` on can be read: in the mapping, or in `buffer` after a read. What
// will be read again (`keep`) is not read past the page cache.
const uint8_t* Run::fetch(const JobOperand& operand, uint64_t first, uint64_t bytes, uint8_t* buffer, bool keep) {
    Source& source = *sources_[operand.source];
    if (operand.view()) return source.gather(*operand.view(), operand.offset, first, bytes, buffer);
    const uint64_t offset = operand.offset + first;
    if (source.in_memory()) return source.memory(offset, bytes);
    if (mappings_[operand.source]) {
        mapped_bytes_ += std::max(bytes, kMappedLeast);
        return mappings_[operand.source]->data() + offset;
    }
    // At the offset's own place within a page: the kernel copies between equally aligned pages twice as fast.
    const uint64_t within = offset % kPage;
    const uint64_t whole = (within + bytes + kPage - 1) / kPage * kPage;
    const bool direct = io_[operand.source] == Io::direct && !keep &&
                        source.read_past_cache(buffer, whole, offset - within) >= within + bytes;
    // Where that isn't possible, or the file shrank, the ordinary read decides.
    if (!direct) source.read(buffer + within, bytes, offset);
    if (Tap* const tap = keep ? nullptr : taps_[operand.source].get()) tap->offer(buffer + within, bytes, offset);
    return buffer + within;
}

// Whether the operand's bytes come by ordinary positioned reads.
bool Run::is_read(const JobOperand& operand) const {
    return !operand.view() && !sources_[operand.source]->in_memory() && io_[operand.source] == Io::pread;
}

// The chunks of a reduction that begin between these bytes of its range: whole ones, wherever the tile ends.
void Run::do_chunks(size_t job_index, uint64_t low, uint64_t high, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    const uint64_t span = kReduceChunk * job.element_bytes();
    for (uint64_t chunk = (low + span - 1) / span; chunk * span < high; ++chunk) {
        if (stop_) return;
        const uint64_t first = chunk * kReduceChunk;
        buffers.reduction = {};
        do_stretch(job_index, first, std::min<uint64_t>(kReduceChunk, job.count - first), -1, buffers);
        std::lock_guard<std::mutex> lock(mutex_);
        reductions_.chunk_done(job_index, chunk, buffers.reduction);
    }
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
