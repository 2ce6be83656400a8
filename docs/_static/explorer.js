// What both explorers use: elements, numbers, charts in SVG, and the state of the view in the address.
'use strict';

const explorer = (() => {
  /** An element with properties (or attributes, where the name has a dash or is not a property) and children. */
  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in made) made[name] = value;
      else if (value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.flat());
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = document.createElementNS('http://www.w3.org/2000/svg', tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  /** A number with up to six digits, as people write it: −0.278465, 1.5 × 10⁻⁸, ∞. */
  function text(value, digits = 6) {
    if (typeof value !== 'number') return value ?? '–';
    if (!Number.isFinite(value)) return value > 0 ? '∞' : value < 0 ? '−∞' : '–';
    if (value !== 0 && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6)) {
      const [mantissa, exponent] = value.toExponential(digits - 1).split('e');
      return `${Number(mantissa)} × 10${[...String(Number(exponent))].map(c => c === '-' ? '⁻' : '⁰¹²³⁴⁵⁶⁷⁸⁹'[c]).join('')}`
        .replace('-', '−');
    }
    return String(Number(value.toPrecision(digits))).replace('-', '−');
  }

  /** A label with a form field; `field.report(message)` shows that a value is not valid, or no longer ('' or none). */
  function labelled(label, field) {
    const message = element('span', {className: 'message', role: 'alert'});
    field.report = (wrong = '') => {
      message.textContent = wrong;
      field.toggleAttribute('aria-invalid', Boolean(wrong));
    };
    return element('label', {}, element('span', {}, label), field, message);
  }

  const option = (value, label = value) => element('option', {value}, label);

  function table(caption, heads, rows) {
    const row = (cells, tag) => element('tr', {}, cells.map((cell, n) =>
      tag === 'td' && n ? element('td', {}, cell) : element('th', {scope: tag === 'th' ? 'col' : 'row'}, cell)));
    return element('div', {className: 'scroll', tabIndex: 0, role: 'region', 'aria-label': caption},
      element('table', {}, element('caption', {}, caption), element('thead', {}, row(heads, 'th')),
        element('tbody', {}, rows.map(cells => row(cells, 'td')))));
  }

  /** Round steps for an axis: 1, 2 or 5 times a power of 10; on a logarithmic axis powers of 10 or 1, 2, 5. */
  function ticks([low, high], count, log) {
    if (log) {
      const found = [];
      const factors = Math.log10(high / low) > 3 ? [1] : [1, 2, 5];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
        found.push(...factors.map(factor => factor * 10 ** power).filter(tick => tick >= low && tick <= high));
      }
      return found;
    }
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].find(factor => factor * power >= rough) * power;
    const first = Math.ceil(low / step - 1e-9);
    return Array.from({length: Math.floor(high / step + 1e-9) - first + 1}, (_, n) => Number(((first + n) * step).toPrecision(12)));
  }

  /** A range around values with a margin; a single value gets one of its own. */
  function around(values, log) {
    const finite = values.filter(Number.isFinite);
    if (!finite.length) return log ? [1, 10] : [0, 1];
    const low = Math.min(...finite), high = Math.max(...finite);
    if (log) return [low / 1.3, high * 1.3];
    const margin = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
    return [low - margin, high + margin];
  }

  /**
   * Axes in `holder`, as wide as it is. x and y: {range, title, log, show: text of a number}.
   * Returns the SVG, a group to draw in, and `place(x, y)` in pixels; `invert(event)` gives the x below the pointer.
   */
  function axes(holder, label, x, y, height) {
    const width = Math.max(holder.clientWidth, 240), left = 62, right = 12, top = 10, bottom = 42;
    const along = ({range: [low, high], log}, value) =>
      log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
    const place = (valueX, valueY) => [
      left + along(x, valueX) * (width - left - right), height - bottom - along(y, valueY) * (height - top - bottom)];
    const id = `clip-${holder.id}`;
    const group = svg('g', {'clip-path': `url(#${id})`});
    const box = {x: left, y: top, width: width - left - right, height: height - top - bottom};
    const picture = svg('svg', {width, height, role: 'img', 'aria-label': label},
      svg('clipPath', {id}, svg('rect', box)));
    for (const tick of ticks(x.range, Math.max(3, Math.floor(width / 70)), x.log)) {
      const [at] = place(tick, y.range[0]);
      picture.append(svg('line', {class: tick === 0 ? 'zero' : 'grid', x1: at, x2: at, y1: top, y2: height - bottom}),
        svg('text', {x: at, y: height - bottom + 17, 'text-anchor': 'middle'}, (x.show ?? text)(tick)));
    }
    for (const tick of ticks(y.range, Math.max(3, Math.floor(height / 55)), y.log)) {
      const [, at] = place(x.range[0], tick);
      picture.append(svg('line', {class: tick === 0 ? 'zero' : 'grid', x1: left, x2: width - right, y1: at, y2: at}),
        svg('text', {x: left - 6, y: at + 4, 'text-anchor': 'end'}, (y.show ?? text)(tick)));
    }
    const middle = (top + height - bottom) / 2;
    picture.append(svg('rect', {class: 'frame', ...box}), group,
      svg('text', {class: 'title', x: left + box.width / 2, y: height - 6, 'text-anchor': 'middle'}, x.title),
      svg('text', {class: 'title', transform: `translate(13 ${middle}) rotate(-90)`, 'text-anchor': 'middle'}, y.title));
    holder.replaceChildren(picture);
    const invert = event => {
      const at = (event.clientX - picture.getBoundingClientRect().left - left) / box.width;
      return x.range[0] + Math.min(Math.max(at, 0), 1) * (x.range[1] - x.range[0]);
    };
    return {picture, group, place, invert};
  }

  /** An SVG path through points; a value that is not finite interrupts it. */
  function line(points, place) {
    let pen = 'M';
    return points.map(([x, y]) => {
      if (!Number.isFinite(y)) {
        pen = 'M';
        return '';
      }
      const step = `${pen}${place(x, y).map(pixel => pixel.toFixed(2)).join(' ')}`;
      pen = 'L';
      return step;
    }).join('');
  }

  /** Call `work` once, when calls of the returned function have stopped for a while. */
  function afterwards(work, milliseconds) {
    let timer;
    return (...values) => {
      clearTimeout(timer);
      timer = setTimeout(work, milliseconds, ...values);
    };
  }

  /**
   * Keep the state of the view in the address: `read(URLSearchParams)` takes it over, `write()` returns it.
   * Returns `take`, to call once at the start, `changed`, to call after each change, and a button that copies the link.
   */
  function address(read, write) {
    const now = () => history.replaceState(null, '', `#${write()}`);
    let ready = false; // before a change by the reader the address stays as it is
    const said = element('span', {role: 'status'});
    const button = element('button', {type: 'button', onclick: async () => {
      now();
      try {
        await navigator.clipboard.writeText(location.href);
        said.textContent = 'Copied.';
      } catch { // no permission, or the page does not come by https
        said.textContent = 'Copy it from the address bar.';
      }
    }}, 'Copy link to this view');
    const take = () => {
      ready = false;
      if (location.hash.includes('=')) read(new URLSearchParams(location.hash.slice(1)));
      ready = true;
    };
    const soon = afterwards(now, 200);
    addEventListener('hashchange', take);
    return {take, changed: () => ready && soon(), copy: element('span', {}, button, ' ', said)};
  }

  return {
    element, svg, text, labelled, option, table, around, axes, line, afterwards, address,
    /** The place of an explorer and its data, or nothing where the page has none. */
    find: name => typeof document === 'undefined' || !document.getElementById(`${name}-explorer`) ? null : {
      root: document.getElementById(`${name}-explorer`),
      data: JSON.parse(document.getElementById(`${name}-data`).textContent),
    },
  };
})();
