// The explorer of models and results: a table to filter, sort and save, and a chart of two of its columns.
'use strict';

(() => {
  const page = explorer.find('models');
  if (!page) return;
  const {element, svg, text, labelled, option} = explorer;
  const {architectures, activations} = page.data;
  const ATTACKS = {clean: 'clean, %', pgd: 'PGD, %', autoattack: 'AutoAttack, %'};
  const COLUMNS = { // name: title
    activation: 'activation', setting: 'settings', dataset: 'data set', ...ATTACKS, arch: 'architecture',
    parameters: 'parameters', multiply_adds: 'multiply-adds', input: 'input', epochs: 'epochs', hours: 'hours',
    seeds: 'seeds', measured: 'how measured',
  };
  const NUMBERS = ['parameters', 'multiply_adds', ...Object.keys(ATTACKS), 'epochs', 'hours'];
  const FILTERS = ['arch', 'activation', 'dataset'];
  const SAVED = [...Object.keys(COLUMNS).flatMap(name => name in ATTACKS ? [name, `${name}_low`, `${name}_high`] : [name]),
    'command', 'source', 'date', 'machine'];

  const ofModel = (arch, activation) => {
    const {parameters, multiply_adds, input} = architectures[arch] ?? {};
    return {arch, activation, multiply_adds, input, parameters: parameters && parameters + (activations[activation] ?? 0)};
  };
  const rows = page.data.rows.map(row => ({...ofModel(row.arch, row.activation), ...row}));
  for (const arch of Object.keys(architectures)) {
    for (const activation of Object.keys(activations)) {
      if (!rows.some(row => row.arch === arch && row.activation === activation)) rows.push(ofModel(arch, activation));
    }
  }
  const shown = Object.keys(COLUMNS).filter(name => rows.some(row => (row[name] ?? '') !== ''));
  const numbers = NUMBERS.filter(name => shown.includes(name));

  // the view
  const main = Object.keys(ATTACKS).reverse().find(name => shown.includes(name)); // the strongest attack that was measured
  const start = {
    arch: '', activation: '', dataset: '', measured: main ? '1' : '', sort: main ?? 'parameters', down: main ? '1' : '',
    x: main ? 'clean' : 'parameters', y: main ?? 'multiply_adds'};
  let view = {...start};

  const select = (label, name, options) => labelled(label, element('select', {name, onchange: event => {
    view[name] = event.target.value;
    update();
  }}, options));
  const values = name => [...new Set(rows.map(row => row[name]).filter(Boolean))];
  const filters = FILTERS.filter(name => shown.includes(name)).map(name =>
    select(COLUMNS[name], name, [option('', 'all'), ...values(name).map(value => option(value))]));
  const only = element('input', {type: 'checkbox', name: 'measured', onchange: () => {
    view.measured = only.checked ? '1' : '';
    update();
  }});
  const axis = (label, name) => select(label, name, numbers.map(column => option(column, COLUMNS[column])));
  const count = element('p', {role: 'status'});
  const save = element('button', {type: 'button', onclick: () => {
    const link = element('a', {download: 'timm_paf.csv', href: URL.createObjectURL(
      new Blob([csv(selected())], {type: 'text/csv'}))});
    link.click();
    URL.revokeObjectURL(link.href);
  }}, 'Save as CSV');
  const plot = element('div', {className: 'plot', id: 'plot-models'}), nearest = element('p', {className: 'nearest'});
  const heads = Object.fromEntries(shown.map(name => [name, element('th', {scope: 'col'}, name === 'measured' ? COLUMNS[name]
    : element('button', {type: 'button', onclick: () => {
      const descends = view.sort === name ? !view.down : NUMBERS.includes(name);
      Object.assign(view, {sort: name, down: descends ? '1' : ''});
      update();
    }}, COLUMNS[name], element('span', {'aria-hidden': 'true'})))]));
  const body = element('tbody');
  const address = explorer.address(state => {
    view = Object.fromEntries(Object.entries(start).map(([name, value]) => [name, state.get(name) ?? value]));
    if (!shown.includes(view.sort) || view.sort === 'measured') view.sort = start.sort;
    for (const name of FILTERS) if (view[name] && !values(name).includes(view[name])) view[name] = '';
    for (const name of ['x', 'y']) if (!numbers.includes(view[name])) view[name] = start[name];
    update();
  }, () => new URLSearchParams(Object.entries(view).filter(([name, value]) => value !== start[name])).toString() || 'view=start');
  page.root.replaceChildren(
    element('div', {className: 'controls'}, filters, main ? element('label', {className: 'check'}, only,
      'only with results') : [], save, address.copy),
    main ? '' : element('p', {}, 'There are no results yet; the table lists the networks.'), count,
    element('div', {className: 'scroll tall', tabIndex: 0, role: 'region', 'aria-label': 'Models and results'},
      element('table', {}, element('caption', {className: 'unseen'}, 'Models and results'),
        element('thead', {}, element('tr', {}, Object.values(heads))), body)),
    element('div', {className: 'controls'}, axis('Chart: across', 'x'), axis('up', 'y')), plot, nearest);

  function selected() {
    const direction = view.down ? -1 : 1;
    const compare = (a, b) => typeof a === 'number' ? a - b : String(a).localeCompare(String(b), 'en', {numeric: true});
    return rows.filter(row => (!view.measured || row.measured) && FILTERS.every(name => !view[name] || row[name] === view[name]))
      .sort((a, b) => { // what is missing comes last in both directions
        const [left, right] = [a, b].map(row => row[view.sort] ?? '');
        return left === '' || right === '' ? (left === '') - (right === '') : direction * compare(left, right);
      });
  }

  /** Rows whose interval overlaps that of the best row for the same data set. */
  function withinNoise(among, name) {
    const best = new Map();
    for (const row of among) {
      if (row[name] > (best.get(row.dataset)?.[name] ?? -1)) best.set(row.dataset, row);
    }
    return new Set(among.filter(row => row[`${name}_high`] >= best.get(row.dataset)?.[`${name}_low`] || best.get(row.dataset) === row));
  }

  const noise = among => Object.fromEntries(Object.keys(ATTACKS).map(name => [name, withinNoise(among, name)]));

  const short = (name, value) => name === 'parameters' ? `${text(value / 1e6, 3)} M` : name === 'multiply_adds'
    ? `${text(value / 1e9, 3)} G` : text(value, 4);

  function cell(row, name, good) {
    const value = row[name];
    if ((value ?? '') === '') return '–';
    if (name === 'measured') return element('details', {}, element('summary', {}, 'show'),
      row.command ? element('code', {}, row.command) : [], element('p', {}, `${value}; ${row.date}, ${row.machine}`));
    if (!(name in ATTACKS)) return NUMBERS.includes(name) ? short(name, value) : text(value);
    const interval = row[`${name}_low`] === undefined ? [] : element('span', {className: 'interval'},
      ` ${row[`${name}_low`].toFixed(1)}–${row[`${name}_high`].toFixed(1)}`);
    const mark = good[name].has(row) ? [element('span', {'aria-hidden': 'true'}, ' ●'),
      element('span', {className: 'unseen'}, ', within noise of the best')] : [];
    return element('span', {className: 'accuracy'}, value.toFixed(1), interval, mark);
  }

  function update() {
    for (const field of page.root.querySelectorAll('select')) field.value = view[field.name];
    const among = selected();
    const good = noise(among);
    only.checked = Boolean(view.measured);
    for (const [name, head] of Object.entries(heads)) {
      const sorted = view.sort === name;
      head.toggleAttribute('aria-sort', sorted);
      if (sorted) head.setAttribute('aria-sort', view.down ? 'descending' : 'ascending');
      if (name !== 'measured') head.querySelector('span').textContent = sorted ? view.down ? ' ▼' : ' ▲' : '';
    }
    body.replaceChildren(...among.map(row => element('tr', {}, shown.map((name, n) =>
      element(n ? 'td' : 'th', n ? {} : {scope: 'row'}, cell(row, name, good))))));
    count.textContent = `${among.length} of ${rows.length} rows.`;
    draw(among, good);
    address.changed();
  }

  function draw(among, good) {
    const {x, y} = view, log = name => ['parameters', 'multiply_adds', 'hours'].includes(name);
    const points = among.filter(row => [x, y].every(name => row[name] !== undefined && !(log(name) && row[name] <= 0)));
    const ends = (row, name) => [row[`${name}_low`] ?? row[name], row[`${name}_high`] ?? row[name]];
    const side = name => ({title: COLUMNS[name], log: log(name), show: value => short(name, value),
      range: explorer.around(points.flatMap(row => ends(row, name)), log(name))});
    const {picture, group, place} = explorer.axes(
      plot, `Chart of ${COLUMNS[y]} against ${COLUMNS[x]}. The table has the numbers.`, side(x), side(y), 340);
    const named = []; // places of names; a name that would overlap another is left out
    const drawn = points.map(row => {
      const [cx, cy] = place(row[x], row[y]), label = [row.activation, row.setting].filter(Boolean).join(', ');
      for (const name of [x, y]) {
        const [[x1, y1], [x2, y2]] = ends(row, name).map(end => name === x ? place(end, row[y]) : place(row[x], end));
        if (x1 !== x2 || y1 !== y2) group.append(svg('line', {class: 'bar', x1, y1, x2, y2}));
      }
      if (points.length <= 8 || (among.length > good[y]?.size && good[y].size <= 8 && good[y].has(row))) { // where there is room
        const right = cx > plot.clientWidth / 2;
        if (named.every(other => Math.abs(other.cx - cx) > 110 || Math.abs(other.cy - cy) > 13)) {
          named.push({cx, cy});
          group.append(svg('text', {x: cx + (right ? -8 : 8), y: cy - 6, 'text-anchor': right ? 'end' : 'start'}, label));
        }
      }
      const dot = svg('circle', {class: good[y]?.has(row) ? 'dot slot-0' : 'ring slot-0', cx, cy, r: 5});
      return {dot, cx, cy, said: `${[label, row.arch, row.dataset].filter(Boolean).join(', ')}: ${COLUMNS[x]} ` +
        `${short(x, row[x])}, ${COLUMNS[y]} ${short(y, row[y])}`};
    });
    group.append(...drawn.map(({dot}) => dot));
    nearest.textContent = drawn.length ? 'Point at the chart to read a name.' : 'No row in view has both columns.';
    picture.onpointermove = picture.onpointerdown = event => {
      const {left, top} = picture.getBoundingClientRect();
      const far = ({cx, cy}) => Math.hypot(cx - event.clientX + left, cy - event.clientY + top);
      const found = drawn.reduce((a, b) => a && far(a) <= far(b) ? a : b, undefined);
      for (const {dot} of drawn) dot.setAttribute('r', dot === found.dot ? 8 : 5);
      if (found) nearest.textContent = found.said;
    };
  }

  function csv(among) {
    const quoted = value => /[",\n\r]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value;
    return [SAVED, ...among.map(row => SAVED.map(name => row[name] ?? ''))].map(cells => `${cells.map(quoted).join(',')}\n`).join('');
  }

  update();
  address.take();
  addEventListener('resize', explorer.afterwards(() => draw(selected(), noise(selected())), 100));
})();
