// The engine: worker threads stream Jobs, tile by tile, from Sources to a Sink. It sees byte ranges and programs,
// never a tensor's name.
//
// A tile is a page-aligned stretch of the output file (it may hold many small tensors, or a part of a large one).
// Workers take tiles from a counter in order: read the operands' bytes, evaluate, write the tile with one call. So
// neither the number of threads nor the tile size can change a byte of the result, and memory is a few buffers per
// worker, whatever the size of the files. A job whose program has stages is a tile of its own: one worker reads the
// tensor once for each stage and a last time to write, the later times from the page cache.
#pragma once

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checksums.h"
#include "file.h"
#include "jobs.h"
#include "targets.h"

namespace sds {

struct RunOptions {
    unsigned threads = 0;  // 0: as many as there are CPUs
    uint64_t tile_bytes = 0;
    Io io = Io::automatic;
    Overflow overflow = Overflow::format;
    bool refuse_overflow = false, refuse_nonfinite = false, refuse_damaged = true;
    bool start_flushing = false;  // begin writing finished stretches back to disk while later ones are computed
    std::string target;           // CPU target, empty for the fastest
};

// Any thread may call anything at any time.
class Run {
 public:
    // Without outputs everything is read and evaluated, and nothing is kept (verification). With several each tile is
    // read once and evaluated for each. `sums`: ranges (offset, bytes) of the only output, each filled by whole jobs,
    // whose CRC-32 is computed on the way.
    Run(std::vector<std::shared_ptr<Source>> sources, std::vector<std::shared_ptr<Program>> programs,
        std::vector<Fill> fills, std::vector<Job> jobs, std::vector<Check> checks,
        const std::vector<std::pair<uint64_t, uint64_t>>& sums, std::vector<Output> outputs, RunOptions options);
    ~Run();
    Run(const Run&) = delete;

    void start();
    bool wait(double seconds);  // true once every worker has ended
    void cancel() noexcept;
    void finish();  // joins; throws the first error, `cancelled` after cancel()

    uint64_t bytes_done() const { return bytes_done_; }  // output bytes of finished tiles
    std::vector<std::vector<Tally>> tallies() const;     // of each output, by job, so far
    Reduction reduction(size_t job) const;               // after finish()
    // Of a run without outputs: the whole-tensor values of a job's stages, in their order; after finish().
    std::vector<double> values(size_t job) const;
    const std::vector<Job>& jobs() const { return jobs_; }
    std::vector<uint32_t> sums() const { return checksums_.sums(); }      // of each summed range, once finished
    std::vector<size_t> damaged() const { return checksums_.damaged(); }  // failed checks, when those are not errors
    std::vector<Io> io() const { return io_; }
    unsigned workers() const;
    const char* target() const { return target_.name; }
    uint64_t buffer_bytes() const;  // upper bound for all workers' buffers

 private:
    struct Buffers;
    void join();
    struct Tile {
        uint64_t begin, end;  // output bytes
        size_t job;           // the first in it
    };
    void add_tiles();
    bool has_stages(const Job& job) const { return job.kind == Job::evaluate && programs_[job.index]->in_stages(); }
    void work();
    void do_tile(const Tile& tile, Buffers& buffers);
    void do_stages(const Tile& tile, Buffers& buffers);
    void do_stretch(size_t job_index, uint64_t first, uint64_t count, int64_t at, Buffers& buffers);
    void write(Buffers& buffers, uint64_t at, uint64_t bytes, uint64_t offset);
    // Whether what is fetched will be read again: if so it is not read past the page cache, and it may stay mapped
    // until its tensor is done.
    enum class Again { no, yes, mapped };
    const uint8_t* fetch(const JobOperand& operand, uint64_t first, uint64_t bytes, uint8_t* buffer, Again again);
    bool may_stay_mapped(const Job& job) const;
    void release_tensors(const Job& job);
    bool is_in_place(const JobOperand& operand) const;
    bool is_read(const JobOperand& operand) const;
    void do_chunks(size_t job_index, uint64_t low, uint64_t high, Buffers& buffers);
    void add_checksums(size_t job_index, uint64_t first, uint64_t count, const uint32_t* crcs);
    void add_tally(size_t output, size_t job_index, const Tally& tally);
    void release_mapped();
    void tile_done(size_t tile);
    void flush_behind();
    void fail(const Error& error) noexcept;
    void fail_for_memory() noexcept;
    void make_buffers();
    std::unique_ptr<Buffers> take_buffers();

    std::vector<std::shared_ptr<Source>> sources_;
    std::vector<std::shared_ptr<Program>> programs_;
    std::vector<Fill> fills_;
    std::vector<Output> outputs_;
    std::vector<Job> jobs_;
    Checksums checksums_;
    std::vector<Io> io_;                      // of each source, no longer `automatic`
    std::vector<std::shared_ptr<Tap>> taps_;  // of those that are being hashed, where they are read past the cache
    std::vector<std::shared_ptr<Mapping>> mappings_;  // of the sources that are read through one
    std::vector<std::shared_ptr<Mapping>> windows_;   // of those with strided operands, held while the run lives
    std::optional<os::FaultGuard> guard_;             // while the threads run, if they read mappings
    RunOptions options_;
    const Target& target_;
    size_t most_operands_ = 0;
    uint64_t chunk_bytes_ = 0;  // of one operand, read at a time
    uint64_t begin_ = 0;
    std::vector<Tile> tiles_;

    std::atomic<uint64_t> next_tile_{0}, bytes_done_{0}, watermark_{0};
    std::atomic<uint64_t> mapped_bytes_{0};  // read through mappings since they were last released
    std::atomic<bool> stop_{false};
    std::mutex threads_mutex_;  // over the threads: held to start or join them, and taken before mutex_
    std::vector<std::thread> threads_;
    std::thread flusher_;
    mutable std::mutex mutex_;  // over what follows
    // Two, so that a thread waiting for the end is not woken by every tile: that cost a tenth of a merge on two cores.
    std::condition_variable changed_;          // the watermark has moved: for the thread that flushes
    std::condition_variable ended_;            // a worker has ended
    std::vector<bool> finished_;               // tiles
    size_t mark_ = 0;                          // the first that is not
    std::vector<std::vector<Tally>> tallies_;  // of each output, by job
    Reductions reductions_;
    std::vector<std::vector<double>> values_;  // by job, of a run without outputs
    unsigned worker_count_ = 1, running_ = 0;
    std::vector<std::unique_ptr<Buffers>> buffers_;  // of workers that haven't begun
    bool started_ = false, cancelled_ = false, out_of_memory_ = false;
    std::unique_ptr<Error> error_;
};

}  // namespace sds
