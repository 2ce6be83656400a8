// The activation explorer: the page that shows what activation-math.js computes.
'use strict';

(() => {
  const page = explorer.find('activations');
  if (!page) return;
  const {element, svg, text, labelled, option} = explorer;
  const {jet, jumps, unit, describe} = activationMath;
  const {activations, paths, mean_range: meanRange} = page.data;
  const MOST = 6; // curves, as many as there are colours
  const SHAPE = [ // name, and how it is shown
    ['greatest curvature |f″|', s => at(s, 'curvature')],
    ['greatest finite curvature', s => at(s, 'finite_curvature')],
    ['output on x < 0', s => s.negative_sign],
    ['positive on', s => list(s.positive_on)],
    ['largest output on x < 0', s => at(s, 'negative_max')],
    ['smallest output on x < 0', s => at(s, 'negative_min')],
    [`mean output on [−${meanRange}, 0]`, s => text(s.negative_mean)],
    ['slope at −∞', s => text(s.slope_left)],
    ['slope at ∞', s => text(s.slope_right)],
    ['increasing or decreasing', s => s.monotonicity],
    ['falls on', s => list(s.falls_on)],
    ['zeros', s => [...s.zeros.map(x => text(x)), ...s.zero_on.map(interval)].join(', ') || 'none'],
    ['smoothness', s => s.smoothness],
  ];
  const at = (s, name) => `${text(s[name])} at x = ${text(s[`${name}_at`])}`;
  const interval = ([low, high]) => `(${text(low)}, ${text(high)})`;
  const list = intervals => intervals.map(interval).join(', ') || 'nowhere';

  // the view: curves {slot, name, values} or {slot, path, epoch}, which are drawn in the colour of their slot
  let curves = [], range = [-5, 5], point = 1;

  const named = curve => curve.path?.activation ?? curve.name;
  const valuesOf = curve => curve.path?.epochs[curve.epoch] ?? curve.values;
  const valuesText = curve => Object.keys(activations[named(curve)]).map(name => `${name} ${text(valuesOf(curve)[name], 4)}`);
  const spoken = curve => [`epoch ${valuesOf(curve).epoch}`, ...valuesText(curve)].join(', ');
  const title = curve => [named(curve), ...valuesText(curve),
    ...curve.path ? [`epoch ${valuesOf(curve).epoch} of ${curve.path.label}`] : []].join(', ');
  /** Whether there was room for one more curve. */
  function add(given) {
    const slot = [...Array(MOST).keys()].find(n => curves.every(curve => curve.slot !== n));
    return slot !== undefined && Boolean(curves.push(given.path ? {slot, epoch: given.path.epochs.length - 1, ...given} : {
      slot, name: given.name,
      values: {...Object.fromEntries(Object.entries(activations[given.name]).map(([name, spec]) => [name, spec.init])),
        ...given.values},
    }));
  }
  const valid = (spec, value) => Number.isFinite(value) && Math.abs(value) >= spec.least &&
    Math.abs(value) <= (spec.greatest ?? Infinity);

  // what does not change
  const choice = element('select', {}, element('optgroup', {label: 'Activations'}, Object.keys(activations).map(name =>
    option(name))), paths.length ? element('optgroup', {label: 'Runs'}, paths.map((path, n) =>
    option(`run:${n}`, path.label))) : []);
  const addButton = element('button', {type: 'button', onclick: () => {
    const run = choice.value.match(/^run:(\d+)$/);
    add(run ? {path: paths[run[1]]} : {name: choice.value});
    arrange();
    cards.lastChild.querySelector('input, button').focus();
  }}, 'Add curve');
  const cards = element('div', {className: 'cards'});
  const number = (value, changed, properties = {}) => element('input', {
    type: 'number', step: 'any', inputMode: 'decimal', ...properties, value, oninput: event => changed(event.target)});
  const bound = n => number(range[n], field => {
    const wanted = Object.assign([...range], {[n]: field.value === '' ? NaN : Number(field.value)});
    const good = wanted.every(Number.isFinite) && wanted[0] < wanted[1];
    field.report(good ? '' : 'Expected two numbers, the first smaller.');
    if (good) [range, bounds[1 - n].value] = [wanted, wanted[1 - n]];
    if (good) bounds.forEach(other => other.report());
    if (good) update();
  });
  const bounds = [0, 1].map(bound);
  const pointField = number(point, field => {
    const value = field.value === '' ? NaN : Number(field.value);
    field.report(Number.isFinite(value) ? '' : 'Expected a number.');
    if (Number.isFinite(value)) point = value;
    if (Number.isFinite(value)) update();
  });
  const said = element('p', {className: 'unseen', role: 'status'});
  const ignored = element('p', {className: 'message', role: 'alert'});
  const holder = name => element('div', {className: 'plot', id: `plot-${name}`});
  const plots = ['value', 'first', 'second'].map(holder), pathPlots = ['alpha', 'beta'].map(holder);
  const [valuesHere, shapes, samples, pathTable] = Array.from({length: 4}, () => element('div'));
  const address = explorer.address(read, write);
  page.root.replaceChildren(
    element('div', {className: 'controls'}, labelled('Activation', choice), addButton, address.copy),
    paths.length ? element('p', {}, 'Under Runs the list has training runs of ours. The slider of a run is the epoch; thin lines ' +
      'are other epochs, from the first to the last.') : '', ignored, cards,
    element('div', {className: 'plots three'}, plots), element('div', {className: 'plots two'}, pathPlots),
    element('div', {className: 'controls'}, labelled('x from', bounds[0]), labelled('x to', bounds[1]),
      labelled('Values at x =', pointField)),
    valuesHere, shapes, said,
    element('details', {}, element('summary', {}, 'The plots as a table'), samples, pathTable));

  /** Draw the controls of all curves again. */
  function arrange() {
    cards.replaceChildren(...curves.map(curve => {
      const specs = activations[named(curve)];
      const now = element('output');
      const controls = curve.path ? [labelled(curve.path.label, element('input', {
        type: 'range', min: 0, max: curve.path.epochs.length - 1, step: 1, value: curve.epoch,
        'aria-valuetext': spoken(curve),
        oninput: event => {
          curve.epoch = Number(event.target.value);
          now.textContent = spoken(curve);
          event.target.setAttribute('aria-valuetext', spoken(curve));
          update();
        },
      })), now] : Object.entries(specs).flatMap(([name, spec]) => {
        const set = (value, other) => {
          curve.values[name] = value;
          other.value = value;
          field.report();
          update();
        };
        const slider = element('input', {
          type: 'range', min: spec.slider[0], max: spec.slider[1], step: 0.01, value: curve.values[name],
          'aria-label': `${name} of ${curve.name}, slider`,
          oninput: () => set(Math.max(Number(slider.value), spec.greatest === null ? -Infinity : spec.least), field),
        });
        const field = number(curve.values[name], () => {
          const value = field.value === '' ? NaN : Number(field.value);
          if (valid(spec, value)) set(value, slider);
          else field.report(`Expected ${spec.greatest === null ? 'a number' : `|${name}| from ${spec.least} to ${spec.greatest}`}.`);
        }, {'aria-label': `${name} of ${curve.name}`});
        return [labelled(name, field), slider];
      });
      const remove = element('button', {type: 'button', 'aria-label': `Remove ${title(curve)}`, onclick: () => {
        curves = curves.filter(other => other !== curve);
        arrange();
        choice.focus();
      }}, 'Remove');
      if (curve.path) now.textContent = spoken(curve);
      return element('fieldset', {className: `slot-${curve.slot}`},
        element('legend', {}, swatch(curve), ' ', element('span', {}, named(curve))), controls, remove);
    }));
    addButton.disabled = curves.length === MOST;
    update();
  }
  const swatch = curve => svg('svg', {width: 34, height: 10, class: `slot-${curve.slot}`, 'aria-hidden': 'true'},
    svg('line', {class: 'curve', x1: 1, x2: 33, y1: 5, y2: 5}));

  /** Points to draw: even ones, and for sharp activations close ones around 0. */
  function places(curve) {
    const [low, high] = range, scale = unit(named(curve), valuesOf(curve)), near = (high - low) * 1e-9;
    const found = Array.from({length: 501}, (_, n) => low + (high - low) * n / 500);
    for (let n = -40; n <= 40; n++) found.push(scale * 10 ** (n / 20), -scale * 10 ** (n / 20));
    return [...found.filter(x => low <= x && x <= high && Math.abs(x) > near),
      ...[-near, 0, near].filter(x => low <= x && x <= high)].sort((a, b) => a - b);
  }

  /** Lines of value, first and second derivative; one that jumps has a gap. */
  function lines(curve, values) {
    const name = named(curve), gaps = jumps(name, values).map((jump, order, all) => all.slice(1, order + 1).some(Boolean));
    const points = places(curve).map(x => [x, jet(name, x, values)]);
    return [0, 1, 2].map(order => points.map(([x, values]) => [x, x === 0 && gaps[order] ? NaN : values[order]]));
  }

  function update() {
    draw();
    address.changed();
  }

  function draw() {
    const drawn = curves.map(curve => lines(curve, valuesOf(curve)));
    const way = curves.map(curve => !curve.path ? [] : spread(curve.path.epochs, 9).map(values => lines(curve, values)));
    plots.forEach((plot, order) => {
      const name = ['f(x)', 'f′(x)', 'f″(x)'][order];
      const all = [...drawn, ...way.flat()].flatMap(lines => lines[order].map(([, y]) => y));
      const {picture, group, place, invert} = explorer.axes(
        plot, `Plot of ${name} for ${curves.map(title).join('; ')}. The numbers are in the tables below.`,
        {range, title: 'x'}, {range: explorer.around([...all, 0]), title: name}, order ? 250 : 320);
      const path = (curve, points, kind) => svg('path', {class: `${kind} slot-${curve.slot}`, d: explorer.line(points, place)});
      const upright = (x, kind) => svg('line', {class: kind, x1: place(x, 0)[0], x2: place(x, 0)[0], y1: 0, y2: 999});
      group.append(upright(point, 'point'));
      curves.forEach((curve, n) => {
        group.append(...way[n].map(lines => path(curve, lines[order], 'faint')), path(curve, drawn[n][order], 'curve'));
        if (order === 2 && jumps(named(curve), valuesOf(curve))[1]) group.append(upright(0, `curve slot-${curve.slot}`));
      });
      const follow = event => {
        if (event.type === 'pointermove' && event.pointerType !== 'mouse') return;
        point = Number(invert(event).toPrecision(4));
        pointField.value = point;
        pointField.report();
        update();
      };
      picture.addEventListener('pointermove', follow);
      picture.addEventListener('pointerdown', follow);
    });
    drawPaths();
    valuesHere.replaceChildren(explorer.table(`Values at x = ${text(point)}`, ['curve', 'f(x)', 'f′(x)', 'f″(x)'],
      curves.map(curve => [title(curve), ...jet(named(curve), point, valuesOf(curve)).map(y => text(y))])));
    const found = curves.map(curve => describe(named(curve), valuesOf(curve), meanRange));
    shapes.replaceChildren(explorer.table('Shape', ['property', ...curves.map(title)],
      SHAPE.map(([name, show]) => [name, ...found.map(show)])));
    const heads = ['x', ...curves.flatMap(curve => ['f', 'f′', 'f″'].map(name => `${name}, ${title(curve)}`))];
    samples.replaceChildren(explorer.table('Value and derivatives', heads, Array.from({length: 21}, (_, n) => {
      const x = Number((range[0] + (range[1] - range[0]) * n / 20).toPrecision(12));
      return [text(x), ...curves.flatMap(curve => jet(named(curve), x, valuesOf(curve)).map(y => text(y, 4)))];
    })));
    say(curves.map((curve, n) => `${title(curve)}: ${SHAPE.slice(1, 7).map(([name, show]) => `${name} ${show(found[n])}`)
      .join(', ')}`).join('. '));
  }
  const say = explorer.afterwards(sentence => {
    if (said.textContent) said.textContent = sentence; // not at the start, when nobody asked
    else said.textContent = ' ';
  }, 700);
  /** At most `count` of the items, evenly, with the first and the last. */
  const spread = (items, count) => items.length <= count ? items
    : Array.from({length: count}, (_, n) => items[Math.round(n * (items.length - 1) / (count - 1))]);

  /** alpha and beta over the epochs of the runs in view. */
  function drawPaths() {
    const runs = curves.filter(curve => curve.path);
    ['alpha', 'beta'].forEach((name, n) => {
      const having = runs.filter(({path}) => name in path.epochs[0]);
      pathPlots[n].hidden = !having.length;
      if (!having.length) return;
      const points = having.map(({path}) => path.epochs.map(values => [values.epoch, values[name]]));
      const {group, place} = explorer.axes(pathPlots[n], `Plot of ${name} after each epoch`,
        {range: explorer.around(points.flat().map(([epoch]) => epoch)), title: 'epoch'},
        {range: explorer.around(points.flat().map(([, value]) => value)), title: name}, 230);
      having.forEach((curve, k) => {
        const [cx, cy] = place(...points[k][curve.epoch]);
        group.append(svg('path', {class: `curve slot-${curve.slot}`, d: explorer.line(points[k], place)}),
          svg('circle', {class: `dot slot-${curve.slot}`, cx, cy, r: 5}));
      });
    });
    pathTable.replaceChildren(...runs.map(({path}) => {
      const names = Object.keys(activations[path.activation]);
      return explorer.table(`Run ${path.label}: ${path.activation}, ${path.arch}, ${path.dataset}`, ['epoch', ...names],
        path.epochs.map(values => [text(values.epoch), ...names.map(name => text(values[name]))]));
    }));
  }

  // the address: a=NAME:ALPHA:BETA or a=run:LABEL:EPOCH for each curve, x=FROM:TO, at=X
  function write() {
    const state = new URLSearchParams(curves.map(curve => ['a', curve.path
      ? `run:${curve.path.label}:${valuesOf(curve).epoch}` : [curve.name, ...Object.values(curve.values)].join(':')]));
    state.append('x', range.join(':'));
    state.append('at', point);
    return state.toString().replaceAll('%3A', ':');
  }
  function read(state) {
    const unknown = [];
    curves = [];
    for (const given of state.getAll('a')) {
      const run = given.match(/^run:(.*):(\d+)$/), path = run && paths.find(({label}) => label === run[1]);
      const [name, ...numbers] = given.split(':'), specs = Object.entries(activations[name] ?? {});
      const epoch = path ? path.epochs.findIndex(values => values.epoch === Number(run[2])) : -1;
      const known = epoch >= 0 || name in activations && numbers.length <= specs.length &&
        numbers.every((value, n) => value !== '' && valid(specs[n][1], Number(value)));
      const values = Object.fromEntries(numbers.map((value, n) => [specs[n]?.[0], Number(value)]));
      if (!known || !add(epoch >= 0 ? {path, epoch} : {name, values})) unknown.push(given);
    }
    const [low, high] = (state.get('x') ?? '').split(':').map(Number);
    if (low < high && Number.isFinite(high - low)) range = [low, high];
    if (state.get('at') && Number.isFinite(Number(state.get('at')))) point = Number(state.get('at'));
    [...bounds, pointField].forEach((field, n) => {
      field.value = [...range, point][n];
      field.report();
    });
    ignored.textContent = unknown.length ? `This page cannot show ${unknown.join(' and ')} of the link.` : '';
    arrange();
  }

  add({name: 'relu'});
  add({name: 'silu'});
  add({name: 'pssilu', values: {alpha: 2.4, beta: 0.3}});
  arrange();
  address.take();
  addEventListener('resize', explorer.afterwards(draw, 100));
})();
