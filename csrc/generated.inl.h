// The loops of generated.h. Included once per CPU target, inside that target's namespace and region, after
// functions.h.

constexpr size_t kBlocks = 64;                              // of four words, that are made at a time
constexpr size_t kTogether = Words::width == 8 ? 4 : 2;     // registers of blocks that go through the rounds together
constexpr size_t kMadeTogether = kTogether * Words::width;  // blocks
using WordsOfBlocks = Words[kTogether][4];

// Of each lane its block, from a register's first on: in this order write_blocks of lanes/*.h writes them one after the
// other.
struct LaneBlocks {
    uint64_t of[Words::width] = {};
    constexpr LaneBlocks() {
        for (size_t l = 0; l < Words::width; ++l) of[l] = l % 2 * (Words::width / 2) + l / 2;
    }
};
constexpr LaneBlocks kLaneBlocks;

// Ten rounds for the blocks from `first` on.
inline void philox(uint64_t first, uint32_t draw, const uint32_t (&key)[2], WordsOfBlocks& w) {
    for (size_t g = 0; g < kTogether; ++g) {
        w[g][0] = Words::read(kLaneBlocks.of) + Words::all(first + g * Words::width);
        w[g][1] = upper(w[g][0]);  // the upper halves of the lanes hold anything
        w[g][2] = Words::all(draw);
        w[g][3] = Words::all(0);
    }
    for (uint32_t round = 0; round < 10; ++round) {
        const Words k0 = Words::all(key[0] + round * 0x9E3779B9), k1 = Words::all(key[1] + round * 0xBB67AE85);
        for (size_t g = 0; g < kTogether; ++g) {
            const Words p = Words::all(0xD2511F53) * w[g][0], q = Words::all(0xCD9E8D57) * w[g][2];
            w[g][0] = exclusive_or(upper(q), w[g][1], k0);
            w[g][1] = q;
            w[g][2] = exclusive_or(upper(p), w[g][3], k1);
            w[g][3] = p;
        }
    }
}

template <class T>
T uniform(uint32_t word) {
    return static_cast<T>(static_cast<int32_t>(word >> 8)) * static_cast<T>(0x1p-24);
}

// The words of consecutive blocks, in order.
inline void draw_words(const Generated& of, uint64_t block, uint32_t (&word)[4 * kBlocks]) {
    for (size_t done = 0; done < kBlocks; done += kMadeTogether) {
        WordsOfBlocks w;
        philox(block + done, of.draw, of.key, w);
        for (size_t g = 0; g < kTogether; ++g) write_blocks(w[g], word + 4 * (done + g * Words::width));
    }
}

template <class T>
void draw_numbers(const Generated& of, uint64_t first, size_t n, T* to) {
    while (n > 0) {
        const size_t skip = static_cast<size_t>(first % 4);
        uint32_t word[4 * kBlocks];
        draw_words(of, first / 4, word);
        size_t now = 4 * kBlocks - skip;
        now = now < n ? now : n;
        T in_order[4 * kBlocks];
        T* const whole = now == 4 * kBlocks ? to : in_order;
        if (of.kind == Generated::uniform) {
            for (size_t i = 0; i < 4 * kBlocks; ++i) whole[i] = uniform<T>(word[i]);
        } else {
            uint32_t a[2 * kBlocks], b[2 * kBlocks];
            T cosines[2 * kBlocks], sines[2 * kBlocks];
            for (size_t j = 0; j < 2 * kBlocks; ++j) {
                a[j] = word[2 * j];
                b[j] = word[2 * j + 1];
            }
            functions::normals_strip(a, b, cosines, sines, 2 * kBlocks);
            for (size_t j = 0; j < 2 * kBlocks; ++j) {
                whole[2 * j] = cosines[j];
                whole[2 * j + 1] = sines[j];
            }
        }
        if (whole != to) memcpy(to, whole + skip, now * sizeof(T));
        first += now;
        to += now;
        n -= now;
    }
}

// Elements from `first` on.
template <class T>
void generate(const Generated& of, uint64_t first, size_t n, T* to) {
    if (of.kind == Generated::elements) {
        for (size_t i = 0; i < n; ++i) {
            if (of.wide) {
                double x;
                memcpy(&x, of.stored + (first + i) * sizeof x, sizeof x);
                to[i] = static_cast<T>(x);
            } else {
                float x;
                memcpy(&x, of.stored + (first + i) * sizeof x, sizeof x);
                to[i] = x;
            }
        }
    } else if (of.kind == Generated::within) {
        const double until =
            of.last < static_cast<double>(first) ? 0 : std::floor(of.last) - static_cast<double>(first) + 1;
        const size_t ones = until < static_cast<double>(n) ? static_cast<size_t>(until) : n;
        std::fill(to, to + ones, T(1));
        std::fill(to + ones, to + n, T(0));
    } else if (of.kind == Generated::uniform || of.kind == Generated::normal) {
        draw_numbers(of, first, n, to);
    } else if (of.inner == 1) {
        for (size_t i = 0; i < n;) {
            const uint64_t place = (first + i) % of.length, left = of.length - place;
            const size_t run = left < n - i ? static_cast<size_t>(left) : n - i;
            if (of.values) {
                for (size_t j = 0; j < run; ++j) to[i + j] = static_cast<T>(of.values[place + j]);
            } else {
                for (size_t j = 0; j < run; ++j) to[i + j] = static_cast<T>(static_cast<double>(place + j));
            }
            i += run;
        }
    } else {
        uint64_t place = first / of.inner % of.length, left = of.inner - first % of.inner;
        for (size_t i = 0; i < n;) {
            const T value = static_cast<T>(of.values ? of.values[place] : static_cast<double>(place));
            const size_t end = left < n - i ? i + static_cast<size_t>(left) : n;
            for (; i < end; ++i) to[i] = value;
            place = place + 1 == of.length ? 0 : place + 1;
            left = of.inner;
        }
    }
}
