// The loops of generated.h. Included once per CPU target, inside that target's namespace and region, after
// functions.h.

// Consecutive blocks of four words: word w of block b is words[w][b].
constexpr size_t kBlocks = 64;
struct Words {
    uint32_t word[4][kBlocks];
};

inline void philox(uint64_t first, uint32_t draw, const uint32_t (&given)[2], Words& out) {
    uint32_t key[2] = {given[0], given[1]};
    for (size_t b = 0; b < kBlocks; ++b) {
        out.word[0][b] = static_cast<uint32_t>(first + b);
        out.word[1][b] = static_cast<uint32_t>((first + b) >> 32);
        out.word[2][b] = draw;
        out.word[3][b] = 0;
    }
    for (int round = 0; round < 10; ++round) {
        for (size_t b = 0; b < kBlocks; ++b) {
            const uint64_t p = uint64_t{0xD2511F53} * out.word[0][b], q = uint64_t{0xCD9E8D57} * out.word[2][b];
            const uint32_t second = out.word[1][b], fourth = out.word[3][b];
            out.word[0][b] = static_cast<uint32_t>(q >> 32) ^ second ^ key[0];
            out.word[1][b] = static_cast<uint32_t>(q);
            out.word[2][b] = static_cast<uint32_t>(p >> 32) ^ fourth ^ key[1];
            out.word[3][b] = static_cast<uint32_t>(p);
        }
        key[0] += 0x9E3779B9;
        key[1] += 0xBB67AE85;
    }
}

template <class T>
void draw_numbers(const Generated& of, uint64_t first, size_t n, T* to) {
    const size_t each = of.kind == Generated::uniform ? 4 : 2;  // elements of a block
    while (n > 0) {
        const uint64_t block = first / each;
        const size_t skip = static_cast<size_t>(first - block * each);
        Words words;
        philox(block, of.draw, of.key, words);
        T drawn[4 * kBlocks];
        if (of.kind == Generated::uniform) {
            for (size_t w = 0; w < 4; ++w) {
                for (size_t b = 0; b < kBlocks; ++b)
                    drawn[4 * b + w] = static_cast<T>(words.word[w][b] >> 8) * static_cast<T>(0x1p-24);
            }
        } else {
            for (size_t w = 0; w < 2; ++w) {
                for (size_t b = 0; b < kBlocks; ++b)
                    drawn[2 * b + w] =
                        static_cast<T>(functions::normal(words.word[2 * w][b], words.word[2 * w + 1][b]));
            }
        }
        size_t now = each * kBlocks - skip;
        now = now < n ? now : n;
        memcpy(to, drawn + skip, now * sizeof(T));
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
        for (size_t i = 0; i < n; ++i) to[i] = static_cast<double>(first + i) <= of.last ? T(1) : T(0);
    } else if (of.kind == Generated::uniform || of.kind == Generated::normal) {
        draw_numbers(of, first, n, to);
    } else {
        for (size_t i = 0; i < n;) {
            const uint64_t at = (first + i) / of.inner, place = at % of.length;
            const T value = static_cast<T>(of.values ? of.values[place] : static_cast<double>(place));
            const uint64_t run = (at + 1) * of.inner - (first + i);
            const size_t end = run < n - i ? i + static_cast<size_t>(run) : n;
            for (; i < end; ++i) to[i] = value;
        }
    }
}
