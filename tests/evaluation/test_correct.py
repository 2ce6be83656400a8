"""Correct masks depend neither on the batch size nor on the number of processes."""
import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from timm_paf._distributed import Processes
from timm_paf.attacks import PGD, ThreatModel
from timm_paf.evaluation import CorruptionArchive, corruption_accuracy, evaluate_robustness, robustness_curve
from timm_paf.evaluation.correct import correct_mask

N, BATCH = 40, 7
CPU = torch.device('cpu')


def seeded_mask(model, x, y, *, batch_size=BATCH, seeds=None, seed=0, processes=None):
    attack = PGD(eps=0.2, steps=2, seed=seed)  # weak, so that the start decides about some
    return correct_mask(
        model, x, y, attack=attack, batch_size=batch_size, seeds=torch.arange(len(x)) if seeds is None else seeds,
        processes=processes)


@pytest.fixture(scope='module')
def images(digits):
    return tuple(t[:N] for t in digits)


@pytest.mark.parametrize('batch_size', [1, 7, 64])
def test_batches_do_not_matter(robust_network, images, batch_size):
    x, y = images
    one = seeded_mask(robust_network, x, y, batch_size=N)
    assert torch.equal(one, seeded_mask(robust_network, x, y, batch_size=batch_size))
    order = torch.randperm(N)
    assert torch.equal(
        one[order], seeded_mask(robust_network, x[order], y[order], batch_size=batch_size, seeds=order))
    # another random start gives another mask, so the equality above is not trivial
    assert not all(torch.equal(one, seeded_mask(robust_network, x, y, seed=seed)) for seed in range(1, 9))


def everything(model, x, y, folder, rank=0, world_size=1, batch_size=BATCH):
    """Counts and masks of all shared measurements, the images that this process classified, and the error of one."""
    shared = dict(batch_size=batch_size, rank=rank, world_size=world_size)
    seen = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    report = evaluate_robustness(
        model, x, y, threat=ThreatModel(eps='0.2'), pgd_steps=2, autoattack_version=None, **shared).to_dict()
    curve = robustness_curve(model, x, y, eps=[0, 0.1, 0.2], steps=2, **shared).to_dict()
    corruptions = corruption_accuracy(model, CorruptionArchive(folder / 'corruptions'), **shared).to_dict()
    hook.remove()
    with Processes.from_rank(rank, world_size, device=CPU).patient() as processes:
        mask = seeded_mask(model, x, y, processes=processes)
        with pytest.raises(ValueError, match='NaN'):  # in the last batch, which is that of one process
            correct_mask(
                model, x, y, batch_size=BATCH, processes=processes,
                attack=lambda model, images, labels: images if len(images) == BATCH else images * torch.nan)
    counts = [report['clean']['correct'], report['pgd']['correct']]
    return [counts, report['by_class'], curve['points'], corruptions['severities'], mask.tolist()], sum(seen)


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


def test_processes_share_the_work_and_find_what_one_finds(robust_network, images, tmp_path):
    x, y = images
    torch.save((robust_network, x, y), tmp_path / 'problem.pt')
    (tmp_path / 'corruptions').mkdir()
    pixels = (x * 255).byte().permute(0, 2, 3, 1).numpy()
    for name in ('fog', 'snow'):
        levels = [np.roll(pixels, severity, axis=2) // (1 + (name == 'fog')) for severity in range(5)]
        np.save(tmp_path / 'corruptions' / f'{name}.npy', np.concatenate(levels))
    np.save(tmp_path / 'corruptions' / 'labels.npy', y.numpy())
    alone, seen_alone = everything(robust_network, x, y, tmp_path)
    (clean, attacked), *_ = alone
    assert 0 < attacked < clean <= N
    assert everything(robust_network, x, y, tmp_path, batch_size=N)[0] == alone
    # the fork server imports the packages once for all processes
    multiprocessing.set_forkserver_preload(['timm_paf.evaluation'])
    multiprocessing.start_processes(work, (tmp_path,), nprocs=3, start_method='forkserver')
    for world_size in (2, 3):
        found = [torch.load(tmp_path / f'{world_size}-{rank}.pt') for rank in range(world_size)]
        assert all(results == alone for results, _ in found)
        checks = 2 * 2 * (world_size - 1)  # each process checks the logits' shape on two images, in report and curve
        assert sum(seen for _, seen in found) == seen_alone + checks
        assert all(seen < seen_alone for _, seen in found)
