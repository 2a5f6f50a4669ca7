// The loop of select.h: a strip of elements' keys into a pass of a selection. Included once per CPU target, inside that
// target's namespace and region, after elementwise.inl.h.

// How often each of the upper 16 bits occurs; four at a time, in any order.
template <class Key>
void count_upper(const Key* keys, size_t n, uint32_t* histogram) {
    uint16_t upper[kStrip];
    for (size_t i = 0; i < n; ++i) upper[i] = static_cast<uint16_t>(keys[i] >> (8 * sizeof(Key) - 16));
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint64_t four;
        memcpy(&four, upper + i, sizeof four);
        ++histogram[four & 0xffff];
        ++histogram[four >> 16 & 0xffff];
        ++histogram[four >> 32 & 0xffff];
        ++histogram[four >> 48];
    }
    for (; i < n; ++i) ++histogram[upper[i]];
}

template <class Key>
void select_strip(Selection& into, const Key* keys, size_t n) {
    constexpr int bits = 8 * sizeof(Key);
    const uint64_t first = into.position;
    into.position += n;
    if (into.shift == bits - 16) return count_upper(keys, n, into.histogram.data());
    // Few share the prefix: eight at a time are passed over.
    uint8_t shares[kStrip];
    const int above = into.shift + 16;
    const Key prefix = static_cast<Key>(into.prefix);
    for (size_t i = 0; i < n; ++i) shares[i] = keys[i] >> above == prefix;
    memset(shares + n, 0, kStrip - n);
    for (size_t begin = 0; begin < n; begin += 8) {
        uint64_t eight;
        memcpy(&eight, shares + begin, sizeof eight);
        if (eight == 0) continue;
        for (size_t i = begin; i < begin + 8; ++i) {
            if (!shares[i]) continue;
            if (into.shift < 0) {
                if (into.wanted != 0 && --into.wanted == 0) into.found_index(first + i);
                continue;
            }
            const uint64_t low = keys[i] >> into.shift & 0xffff;
            ++into.histogram[low];
            if (into.collecting()) into.collect(first + i, low);
        }
    }
}
