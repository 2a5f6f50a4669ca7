// The most float32 multiplications and additions, each rounded by itself, that one thread does in a second of
// processor time: printed in
// units of 10⁹. Independent chains in vector registers, without memory.
//
//     c++ -O3 -march=native -ffp-contract=off peak.cc -o peak && ./peak
#include <cstdio>
#include <ctime>

#if defined(__AVX512F__)
constexpr int kWidth = 16, kChains = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8, kChains = 10;
#else
constexpr int kWidth = 4, kChains = 10;
#endif
typedef float Lanes __attribute__((vector_size(kWidth * 4)));

int main() {
    Lanes sums[kChains], factor = {}, x = {};
    for (int k = 0; k < kChains; ++k) sums[k] = Lanes{} + 1.0f;
    factor += 1.0000001f;
    x += 0.5f;
    asm volatile("" : "+x"(factor), "+x"(x));
    constexpr long kRounds = 20'000'000;
    const std::clock_t started = std::clock();
    for (long round = 0; round < kRounds; ++round) {
        for (int k = 0; k < kChains; ++k) {
            asm volatile("" : "+x"(x));  // so that no product is made once for all
            sums[k] = sums[k] + factor * x;
        }
    }
    const double seconds = static_cast<double>(std::clock() - started) / CLOCKS_PER_SEC;
    Lanes total = {};
    for (int k = 0; k < kChains; ++k) total += sums[k];
    asm volatile("" : : "x"(total));
    std::printf("%.2f\n", 2.0 * kWidth * kChains * static_cast<double>(kRounds) / seconds / 1e9);
}
