// Numbers: how they are stored, exp and log1p. Everything is written as selections, never as branches, so that the
// compiler turns the loops around it into vector instructions.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

using i64 = std::int64_t;

// a loop with a call in it is not made of vector instructions
#define INLINE inline __attribute__((always_inline))

template <class To, class From>
INLINE To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}

// ---- storage: float, double, and the two 16-bit formats, which are rounded once, to the nearest, ties to even

struct bfloat16 { std::uint16_t bits; };
struct float16 { std::uint16_t bits; };

INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }
INLINE float widen(bfloat16 x) { return bits_of<float>(std::uint32_t(x.bits) << 16); }
INLINE float widen(float16 x) {
    const std::uint32_t magnitude = std::uint32_t(x.bits & 0x7fffu) << 13;
    const float number = bits_of<float>(magnitude) * 0x1p112f;  // the exponents' offsets differ by 112
    const std::uint32_t special = bits_of<std::uint32_t>(number) | 0x7f800000u;  // infinity, NaN
    const std::uint32_t result = (x.bits & 0x7c00u) == 0x7c00u ? special : bits_of<std::uint32_t>(number);
    return bits_of<float>(result | std::uint32_t(x.bits & 0x8000u) << 16);
}

INLINE void narrow(float x, float& to) { to = x; }
INLINE void narrow(double x, double& to) { to = x; }
INLINE void narrow(float x, bfloat16& to) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x);
    const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    to.bits = std::uint16_t(x != x ? 0x7fc0u : rounded);
}
INLINE void narrow(float x, float16& to) {
    const std::uint32_t bits = bits_of<std::uint32_t>(x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    const std::uint32_t normal = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
    // below 2^-14 the adder rounds: 0.5 has its last digit where a subnormal number of float16 has
    const std::uint32_t tiny = bits_of<std::uint32_t>(bits_of<float>(size) + 0.5f) - 0x3f000000u;
    std::uint32_t result = size < 0x38800000u ? tiny : normal;
    result = size >= 0x477ff000u ? 0x7c00u : result;  // 65520 and more
    result = size > 0x7f800000u ? 0x7e00u : result;
    to.bits = std::uint16_t(result | sign);
}

// ---- exp and log1p, within one unit in the last place; coefficients: Chebyshev fits in 200 bits

template <class F> struct Format;
template <> struct Format<float> {
    using Int = std::int32_t;
    static constexpr int mantissa = 23, bias = 127, low = 100;  // u < 2^-low is split
    static constexpr float least = -156.f;  // exp(least) x is 0 for every |x| < 1e18
    static constexpr float plain = 69.f;  // exp(-plain) x is a normal number for every x that is worth it
    static constexpr float round = 0x1.8p23f, log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    static constexpr float exp_series[] = {
        0.50000000134658092f, 0.16666666681623231f, 0.041666464925285905f, 0.0083333109254809008f,
        0.0013933649996309250f, 0.00019890990824673654f};
    static constexpr float log_series[] = {
        0.66666667320527413f, 0.39999706331929717f, 0.28592357994302838f, 0.21706575800880373f, 0.23224329224023349f};
    static constexpr float small = 0x1p-100f, large = 0x1p100f;
};
template <> struct Format<double> {
    using Int = std::int64_t;
    static constexpr int mantissa = 52, bias = 1023, low = 900;
    static constexpr double least = -1300., plain = 600.;
    static constexpr double round = 0x1.8p52, log2e = 1.4426950408889634, ln2_high = 0.6931471803691238,
                            ln2_low = 1.9082149292705877e-10;
    static constexpr double exp_series[] = {
        0.5, 0.16666666666666667, 0.041666666666666676774, 0.008333333333333334007, 0.0013888888888879073994,
        0.00019841269841263299129, 2.4801587336442237861e-5, 2.7557319247218730776e-6, 2.7557263279088496905e-7,
        2.5052071094293546753e-8, 2.0918137737642736429e-9, 1.6086627956780368844e-10};
    static constexpr double log_series[] = {
        0.66666666666666666661, 0.40000000000000015478, 0.28571428571421943297, 0.22222222223331986844,
        0.18181818086005655452, 0.15384620253804162399, 0.1333317694913817845, 0.1176799776724103616,
        0.10480399234365274052, 0.099420248965547346282, 0.063341108517702453959, 0.15231262619428984839};
    static constexpr double small = 0x1p-900, large = 0x1p900;
};

template <class F, int N>
INLINE F polynomial(const F (&series)[N], F x) {
    F sum = series[N - 1];
    for (int i = N - 2; i >= 0; --i) sum = sum * x + series[i];
    return sum;
}

template <class F> INLINE F below(F x, F limit) { return x > limit ? limit : x; }  // NaN goes through both
template <class F> INLINE F above(F x, F limit) { return x < limit ? limit : x; }
template <class F> INLINE F power(typename Format<F>::Int n) {
    return bits_of<F>(typename Format<F>::Int((n + Format<F>::bias) << Format<F>::mantissa));
}

// t = n log(2) + r; gives exp(r) - 1 and n
template <class F>
INLINE F reduced(F t, typename Format<F>::Int& n) {
    using P = Format<F>;
    const F shifted = t * P::log2e + P::round;
    const F whole = shifted - P::round;
    n = bits_of<typename P::Int>(shifted) - bits_of<typename P::Int>(F(P::round));
    const F r = (t - whole * P::ln2_high) - whole * P::ln2_low;
    return r + r * r * polynomial(P::exp_series, r);
}

// exp(t) for |t| < plain
template <class F>
INLINE F plain_exponential(F t) {
    typename Format<F>::Int n;
    const F rest = reduced(t, n), scale = power<F>(n);
    return rest * scale + scale;
}

template <class F> struct Exponential { F v, w, over_w; };

// exp(t) for t <= 0
template <class F>
INLINE Exponential<F> exponential(F t) {
    using P = Format<F>;
    typename P::Int n;
    const F rest = reduced(above(t, F(P::least)), n);
    const bool split = n < -P::low;
    const F v = (1 + rest) * power<F>(n + (split ? P::low : 0));
    return {t < F(P::least) ? F(0) : v, split ? F(P::small) : F(1), split ? F(P::large) : F(1)};
}

// exp(x) - 1 for x <= 0, or -plain < x <= 0
template <class F, bool Plain = false>
INLINE F expm1_negative(F x) {
    typename Format<F>::Int n;
    const F rest = reduced(Plain ? x : above(x, F(-80)), n);
    const F scale = power<F>(n);
    const F result = rest * scale + (scale - 1);
    return n == 0 ? rest : result;
}

// log(1 + u) for 0 <= u <= 1
template <class F>
INLINE F log1p_unit(F u) {
    const F s = u / (2 + u), z = s * s;
    return (s + s) + s * z * polynomial(Format<F>::log_series, z);
}

}  // namespace
