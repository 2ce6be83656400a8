"""The table of the shipped configurations, made from the comments at the top of their files."""
import re
from pathlib import Path
from typing import NamedTuple

CONFIGS = Path(__file__).resolve().parents[1] / 'recipes' / 'configs'


class Header(NamedTuple):
    """What the comment at the top of a configuration says."""
    title: str
    command: str
    data: str
    expected: str
    time: str


def read_header(text: str) -> Header:
    """Read the comment: a title, commands that are indented, and the paragraphs Data:, Expected: and Time:."""
    lines = re.match(r'(#.*\n)+', text)[0].splitlines()
    command = [re.sub(r'(?<=\S) {4,}', '  # ', line[4:]) for line in lines if line.startswith('#   ')]
    words = ' '.join(line.strip('# ') for line in lines if not line.startswith('#   '))
    words = re.sub(r'(--[a-z][a-z-]*[a-z])', r'`\1`', words)
    title, *parts = re.split(r'\b(Data|Expected|Time): ', words)
    found = {key: value.strip() for key, value in zip(parts[::2], parts[1::2], strict=True)}
    return Header(
        title.strip(), '\n'.join(command), found.get('Data', 'as on [its page](shape_sweep.md).'),
        found.get('Expected', 'not stated'), found.get('Time', 'not measured'))


def write_configurations(path: Path) -> None:
    """Write the table, and a section with command and content for each file."""
    files = {file.stem: file.read_text(encoding='utf-8') for file in sorted(CONFIGS.glob('*.yaml'))}
    table = ['| configuration | data to fetch | expected | hours |', '| --- | --- | --- | --- |']
    sections = []
    for name, text in files.items():
        header = read_header(text)
        expected = header.expected.split(' Not measured here')[0]
        table.append(f'| [`{name}`](#{name}) | {header.data.rstrip(".")} | {expected.rstrip(".")} | {header.time} |')
        sections += [f'## {name}', '', header.title, '', '```bash', header.command, '```', '']
        sections += [f'- Data: {header.data}', f'- Expected: {header.expected}', f'- Time: {header.time}.', '']
        sections += [f'<details><summary>recipes/configs/{name}.yaml</summary>', '']
        sections += ['```yaml', text.rstrip(), '```', '', '</details>', '']
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join([*table, '', *sections]), encoding='utf-8')
