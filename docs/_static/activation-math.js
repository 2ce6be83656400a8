// Activations with two derivatives, and the numbers of their shape: the formulas of timm_paf/activations/functional.py
// and the properties of timm_paf/activations/shape.py. tests/test_explorers.py compares both.
'use strict';

const activationMath = (() => {
  // A jet is [f, f', f''] at one x; sums, products and compositions carry the derivatives along.
  const plus = (u, v) => u.map((value, n) => value + v[n]);
  const scaled = (factor, u) => u.map(value => factor * value);
  const times = (u, v) => [u[0] * v[0], u[1] * v[0] + u[0] * v[1], u[2] * v[0] + 2 * u[1] * v[1] + u[0] * v[2]];
  /** g(u) from the jet of u and g, which gives [g, g', g''] at a number. */
  const of = (g, u) => {
    const [value, slope, bend] = g(u[0]);
    return [value, slope * u[1], bend * u[1] * u[1] + slope * u[2]];
  };
  const linear = (x, slope) => [slope * x, slope, 0];

  // exp is taken of what is at most 0, so that nothing overflows and no small difference of large numbers is left
  function sigmoid(t) {
    const odds = Math.exp(-Math.abs(t)), large = 1 / (1 + odds), small = odds / (1 + odds);
    const [value, complement] = t >= 0 ? [large, small] : [small, large];
    return [value, large * small, large * small * (complement - value)];
  }
  function softplus(t) {
    const [slope, bend] = sigmoid(t);
    return [Math.max(t, 0) + Math.log1p(Math.exp(-Math.abs(t))), slope, bend];
  }
  function tanh(t) {
    const value = Math.tanh(t), slope = (1 - value) * (1 + value);
    return [value, slope, -2 * value * slope];
  }
  function normal(x) { // the distribution function: its series near 0, a continued fraction in the tails
    const density = Math.exp(-x * x / 2) / Math.sqrt(2 * Math.PI), size = Math.abs(x);
    if (size < 2) {
      let term = x, sum = x;
      for (let n = 3; Math.abs(term) > 1e-17 * Math.abs(sum); n += 2) sum += term *= x * x / n;
      return [0.5 + density * sum, density, -x * density];
    }
    let fraction = 0;
    for (let n = 120; n > 0; n--) fraction = n / (size + fraction);
    const tail = density / (size + fraction);
    return [x < 0 ? tail : 1 - tail, density, -x * density];
  }
  const sides = (x, positive, negative) => x > 0 ? positive : negative;
  const exponential = (x, a) => [a * Math.expm1(x), a * Math.exp(x), a * Math.exp(x)];
  const shiftedSilu = (x, a, b) => { // x (s - b)/(1 - b) with s = sigmoid(a x), c = 1 - s is x (s - c b/(1 - b))
    const difference = plus(of(sigmoid, linear(x, a)), scaled(-b / (1 - b), of(sigmoid, linear(x, -a))));
    return times([x, 1, 0], difference);
  };
  const {abs} = Math;

  const FORMULAS = {
    relu: x => sides(x, [x, 1, 0], [0, 0, 0]),
    leaky_relu: x => sides(x, [x, 1, 0], linear(x, 0.01)),
    elu: x => sides(x, [x, 1, 0], exponential(x, 1)),
    silu: x => shiftedSilu(x, 1, 0),
    gelu: x => times([x, 1, 0], normal(x)),
    mish: x => times([x, 1, 0], of(tanh, softplus(x))),
    softplus,
    prelu0: (x, {alpha}) => sides(x, [x, 1, 0], linear(x, alpha)),
    preluplus: (x, {alpha}) => sides(x, linear(x, alpha), [0, 0, 0]),
    pelu: (x, {alpha}) => sides(x, [x, 1, 0], exponential(x, alpha)),
    peluplus: (x, {alpha}) => sides(x, linear(x, alpha), exponential(x, 1)),
    psilu: (x, {alpha}) => shiftedSilu(x, abs(alpha), 0),
    psoftplus: (x, {alpha}) => scaled(1 / abs(alpha), of(softplus, linear(x, abs(alpha)))),
    reblu: (x, {alpha}) => {
      const root = Math.hypot(1, x); // root - 1 = x^2/(root + 1) loses no digits
      return sides(x, plus([x, 1, 0], scaled(alpha, [x * (x / (root + 1)), x / root, 1 / root ** 3])), [0, 0, 0]);
    },
    ssilu: (x, {beta}) => shiftedSilu(x, 1, abs(beta)),
    pssilu_fixed: (x, {alpha, beta}) => shiftedSilu(x, abs(alpha), abs(beta)),
    pssilu: (x, {alpha, beta}) => shiftedSilu(x, abs(alpha), abs(beta)),
  };
  const IN_PARTS = new Set(['relu', 'leaky_relu', 'elu', 'prelu0', 'preluplus', 'pelu', 'peluplus', 'reblu']);

  /** [f, f', f''] at x; at x = 0 those of the side x <= 0. */
  const jet = (name, x, parameters = {}) => FORMULAS[name](x, parameters);

  /** The unit of x: 1 where the formula is in parts or has no sharpness. */
  const unit = (name, {alpha}) => IN_PARTS.has(name) || !alpha ? 1 : 1 / Math.max(abs(alpha), 1e-100);

  /** By how much f, f' and f'' jump at 0; less than rounding is no jump. */
  function jumps(name, parameters) {
    if (!IN_PARTS.has(name)) return [0, 0, 0];
    const [left, right] = [-1e-15, 1e-15].map(x => jet(name, x, parameters).map(abs).concat(jet(name, x, parameters)));
    return [0, 1, 2].map(order => {
      let size = 0;
      for (let n = order; n < 3; n++) size += Math.max(left[n], right[n]);
      const jump = right[order + 3] - left[order + 3];
      return abs(jump) > 1e-12 * size ? jump : 0;
    });
  }

  /** The properties of timm_paf.shape.describe, by the same names; an interval is [from, to]. */
  function describe(name, parameters = {}, meanRange = 8) {
    const scale = unit(name, parameters), at = x => jet(name, x, parameters);
    const rounded = x => abs(x) < 1e-11 * scale ? 0 : x;
    const positive = Array.from({length: 1009}, (_, n) => scale * 10 ** (n / 48 - 12));
    const points = [...positive.map(x => -x).reverse(), ...positive];
    const jets = points.map(at);
    const [, kink, bend] = jumps(name, parameters);

    // intervals on which f (order 0) or f' (order 1) keeps its sign; an underflow to 0 counts as the sign next to it,
    // unless it begins or ends at 0, where the formula may change
    function runs(order) {
      const groups = [];
      jets.forEach((values, n) => {
        const sign = Math.sign(values[order]) || 0, last = groups.at(-1);
        if (last?.sign === sign) last.last = n;
        else groups.push({first: n, last: n, sign});
      });
      const breaks = kink || bend, end = points.length - 1;
      const kept = groups.filter(({first, last, sign}) => sign || groups.length === 1 || (breaks &&
        points[Math.max(first - 1, 0)] <= 0 && points[Math.min(last + 1, end)] >= 0));
      const found = [{left: -Infinity, right: Infinity, sign: kept[0].sign}];
      kept.slice(1).forEach(({first, sign}, n) => {
        const before = found.at(-1);
        if (sign === before.sign) return;
        let place = 0;
        if (sign && before.sign) place = rounded(bisect(x => at(x)[order], points[kept[n].last], points[first]));
        before.right = place;
        found.push({left: place, right: Infinity, sign});
      });
      return found;
    }
    const select = (list, sign, end = Infinity) => list
      .filter(run => run.sign === sign && run.left < Math.min(run.right, end))
      .map(run => [run.left, Math.min(run.right, end)]);

    const values = runs(0), slopes = runs(1);
    const positiveOn = select(values, 1, 0), negativeOn = select(values, -1, 0), zeroOn = select(values, 0);
    const fallsOn = select(slopes, -1), rises = slopes.some(run => run.sign > 0);

    const bends = jets.map(values => abs(values[2])), greatest = Math.max(...bends);
    const best = bends.reduce((found, value, n) =>
      value >= greatest * (1 - 1e-9) && !(abs(points[found]) <= abs(points[n])) ? n : found, -1);
    const [finite, finiteAt] = rounded(points[best]) === 0 ? [greatest, 0]
      : maximum(x => abs(at(x)[2]), points[Math.max(best - 1, 0)], points[Math.min(best + 1, points.length - 1)]);

    const [slopeLeft, slopeRight] = [jets[0][1] + 0, jets.at(-1)[1] + 0];
    const extrema = slopes.slice(1).map(run => run.left).filter(x => x < 0).sort((a, b) => b - a);
    const ends = [[at(0)[0] + 0, 0], ...extrema.map(x => [at(x)[0], x]),
      [slopeLeft ? -Math.sign(slopeLeft) * Infinity : jets[0][0] + 0, -Infinity]];
    const [largest, least] = [1, -1].map(sign => ends.reduce((a, b) => sign * b[0] > sign * a[0] ? b : a));
    const zeros = new Set(values.slice(1).map(run => run.left));
    if (at(0)[0] === 0) zeros.add(0);
    return {
      curvature: kink ? Infinity : finite, curvature_at: kink ? 0 : finiteAt,
      finite_curvature: finite, finite_curvature_at: finiteAt,
      negative_sign: [['zero', 'negative'], ['positive', 'mixed']][+Boolean(positiveOn.length)][+Boolean(negativeOn.length)],
      positive_on: positiveOn, negative_on: negativeOn,
      negative_max: largest[0], negative_max_at: largest[1], negative_min: least[0], negative_min_at: least[1],
      negative_mean: mean(x => at(x)[0], meanRange), slope_left: slopeLeft, slope_right: slopeRight,
      monotonicity: [['constant', 'decreasing'], ['increasing', 'neither']][+rises][+Boolean(fallsOn.length)],
      falls_on: fallsOn, zeros: [...zeros].filter(x => !zeroOn.some(([low, high]) => low <= x && x <= high))
        .sort((a, b) => a - b),
      zero_on: zeroOn, smoothness: kink ? 'C0' : bend ? 'C1' : 'smooth',
    };
  }

  function bisect(f, low, high) {
    const sign = Math.sign(f(low));
    for (let middle = (low + high) / 2; low < middle && middle < high; middle = (low + high) / 2) {
      if (Math.sign(f(middle)) === sign) low = middle;
      else high = middle;
    }
    return low;
  }

  /** [greatest value, its place] between two points, by the golden section. */
  function maximum(f, low, high) {
    const ratio = (Math.sqrt(5) - 1) / 2;
    for (let n = 0; n < 60; n++) {
      const left = high - ratio * (high - low), right = low + ratio * (high - low);
      if (f(left) >= f(right)) high = right;
      else low = left;
    }
    return [f((low + high) / 2), (low + high) / 2];
  }

  /** Mean over [-length, 0] by Gauss's rule with five points, in cells that shrink towards 0. */
  function mean(f, length) {
    const nodes = [[0, 128 / 225], ...[-1, 1].flatMap(sign => [[1, 322], [-1, 322]].map(([s, whole]) =>
      [sign * Math.sqrt(5 - s * 2 * Math.sqrt(10 / 7)) / 3, (whole + s * 13 * Math.sqrt(70)) / 900]))];
    let total = 0;
    for (let n = 0; n < 45; n++) {
      const right = n < 44 ? -length * 2 ** -(n + 1) : 0, parts = 8;
      const half = (right + length * 2 ** -n) / parts / 2;
      for (let part = 0; part < parts; part++) {
        for (const [node, weight] of nodes) total += half * weight * f(right - half * (2 * part + 1 + node));
      }
    }
    return total / length + 0;
  }

  return {jet, jumps, unit, describe};
})();
