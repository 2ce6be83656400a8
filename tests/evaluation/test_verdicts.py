"""The verdict on an image depends on the image: not on its batch, and not on how many processes share the images."""
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from timm_paf._distributed import Processes
from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import (
    CorruptionArchive,
    accuracy_under_attack,
    clean_accuracy,
    corruption_accuracy,
    evaluate_robustness,
    robustness_curve,
)
from timm_paf.evaluation._verdicts import verdicts

N, BATCH = 40, 7
ATTACK = dict(eps=0.2, steps=2)  # weak, so that the start decides about some


def seeded_verdicts(model, x, y, *, batch_size=BATCH, seeds=None, seed=0, **ranks):
    seeds = torch.arange(len(x)) if seeds is None else seeds
    return verdicts(
        model, x, y, attack=PGD(**ATTACK, seed=seed), batch_size=batch_size, device=None, seeds=seeds, **ranks)


@pytest.fixture(scope='module')
def images(digits):
    return tuple(t[:N] for t in digits)


@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_batches_do_not_matter(robust_network, images, batch_size):
    x, y = images
    one = seeded_verdicts(robust_network, x, y, batch_size=N)
    assert torch.equal(one, seeded_verdicts(robust_network, x, y, batch_size=batch_size))
    order = torch.randperm(N)
    assert torch.equal(
        one[order], seeded_verdicts(robust_network, x[order], y[order], batch_size=batch_size, seeds=order))
    # the start does matter, or this would hold for any
    assert not all(torch.equal(one, seeded_verdicts(robust_network, x, y, seed=seed)) for seed in range(1, 9))


@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_reports_and_curves_are_the_same_in_any_batches(robust_network, images, batch_size):
    found = []
    for size in (N, batch_size):
        report = evaluate_robustness(
            robust_network, *images, threat=ThreatModel(eps='0.2'), pgd_steps=2, autoattack_version=None,
            batch_size=size)
        curve = robustness_curve(robust_network, *images, eps=[0, 0.1, 0.2], steps=2, batch_size=size)
        early = robustness_curve(robust_network, *images, eps=[0, 0.1, 0.2], steps=2, batch_size=size, early_stop=True)
        assert [point.worst for point in early.points] == [point.worst for point in curve.points]
        found.append((report.measurements['pgd'].accuracy, report.by_class, curve.points))
    assert found[0] == found[1]


def work(rank, folder):
    """One of three processes; the first two of them do it again as two."""
    torch.set_num_threads(1)
    for world_size in (3, 2):
        if rank < world_size:
            dist.init_process_group(
                'gloo', init_method=f'file://{folder}/rendezvous{world_size}', rank=rank, world_size=world_size)
            problem = torch.load(folder / 'problem.pt', weights_only=False)
            torch.save(everything(*problem, folder, rank, world_size), folder / f'{world_size}-{rank}.pt')
            dist.destroy_process_group()


def everything(model, x, y, folder, rank=0, world_size=1):
    """Counts and verdicts of all that processes can share, what one of them looked at, and the error of one."""
    shared = dict(batch_size=BATCH, rank=rank, world_size=world_size)
    seen = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    report = evaluate_robustness(
        model, x, y, threat=ThreatModel(eps='0.2'), pgd_steps=2, autoattack_version=None, **shared)
    curve = robustness_curve(model, x, y, eps=[0, 0.1, 0.2], steps=2, **shared)
    corruptions = corruption_accuracy(model, CorruptionArchive(folder / 'corruptions'), **shared)
    hook.remove()
    with Processes.from_rank(rank, world_size, device=torch.device('cpu')).patient() as ranks:
        single = seeded_verdicts(model, x, y, ranks=ranks)
        try:  # the last batch is that of one process
            verdicts(
                model, x, y, batch_size=BATCH, device=None, ranks=ranks,
                attack=lambda model, images, labels: images if len(images) == BATCH else images * torch.nan)
            error = ''
        except ValueError as caught:
            error = str(caught)
    return {
        'pgd': report.measurements['pgd'].accuracy.correct, 'clean': report.measurements['clean'].accuracy.correct,
        'by_class': [entry.to_dict() for entry in report.by_class], 'curve': curve.to_dict()['points'],
        'corruptions': corruptions.to_dict()['severities'], 'verdicts': single, 'error': error, 'seen': sum(seen)}


@pytest.fixture(scope='module')
def found(robust_network, images, tmp_path_factory):
    """What one process finds, and what each of two and of three that share the work find."""
    folder = tmp_path_factory.mktemp('ranks')
    x, y = images
    torch.save((robust_network, x, y), folder / 'problem.pt')
    (folder / 'corruptions').mkdir()
    pixels = (x * 255).byte().permute(0, 2, 3, 1).numpy()
    for name in ('fog', 'snow'):
        levels = [np.roll(pixels, severity, axis=2) // (1 + (name == 'fog')) for severity in range(5)]
        np.save(folder / 'corruptions' / f'{name}.npy', np.concatenate(levels))
    np.save(folder / 'corruptions' / 'labels.npy', y.numpy())
    multiprocessing.start_processes(work, (folder,), nprocs=3, start_method='spawn')
    several = {
        world_size: [torch.load(folder / f'{world_size}-{rank}.pt') for rank in range(world_size)]
        for world_size in (2, 3)}
    return everything(robust_network, x, y, folder), several


@pytest.mark.parametrize('world_size', [2, 3])
def test_processes_find_what_one_finds(found, world_size):
    alone, several = found
    assert 0 < alone['pgd'] < alone['clean'] <= N
    for rank in several[world_size]:
        assert torch.equal(rank['verdicts'], alone['verdicts'])
        for name in ('pgd', 'clean', 'by_class', 'curve', 'corruptions'):
            assert rank[name] == alone[name]


@pytest.mark.parametrize('world_size', [2, 3])
def test_no_process_does_what_another_does(found, world_size):
    alone, several = found
    looks = 2 * 2 * (world_size - 1)  # at the logits' shape, by each in report and curve, two images
    assert sum(rank['seen'] for rank in several[world_size]) == alone['seen'] + looks
    assert all(rank['seen'] < alone['seen'] for rank in several[world_size])


@pytest.mark.parametrize('world_size', [2, 3])
def test_all_leave_where_one_meets_an_error(found, world_size):
    _, several = found
    assert all('the attack made images of NaN' in rank['error'] for rank in several[world_size])


@pytest.mark.parametrize('measure', [
    clean_accuracy, lambda *problem: accuracy_under_attack(*problem, attack=PGD(eps=0.1))], ids=['clean', 'attacked'])
def test_images_out_of_range_are_refused(robust_network, images, measure):
    x, y = images
    with pytest.raises(ValueError, match=r'expected \[0, 1\]'):
        measure(robust_network, x * 255, y)
