// A run of codes that share a scale. Included once per CPU target, behind elementwise.inl.h.

// `count` weights from number `first` of `codes` on.
inline void decode(Coding kind, bool low_first, const uint8_t* codes, size_t first, size_t count, float scale,
                   float* out) {
    switch (kind) {
        case Coding::e4m3: widen<E4M3>(codes + first, out, count); break;
        case Coding::e5m2: widen<E5M2>(codes + first, out, count); break;
        case Coding::i8:
            for (size_t i = 0; i < count; ++i) out[i] = static_cast<float>(static_cast<int8_t>(codes[first + i]));
            break;
        default: {
            const float* const table = packed_values(kind);
            const unsigned even = low_first ? 0 : 4, odd = 4 - even;
            size_t i = 0;
            if (first % 2 != 0 && count != 0) out[i++] = table[codes[first / 2] >> odd & 15];
            for (; i + 2 <= count; i += 2) {
                const uint8_t both = codes[(first + i) / 2];
                out[i] = table[both >> even & 15];
                out[i + 1] = table[both >> odd & 15];
            }
            if (i < count) out[i] = table[codes[(first + i) / 2] >> even & 15];
        }
    }
    for (size_t i = 0; i < count; ++i) out[i] *= scale;
}
