"""Settles how many subjects the lanes of a job train together, before the first one starts."""

from __future__ import annotations

from dataclasses import replace

from dbray.lanes.trial import choose_pack
from dbray.planning.cascade import trained_stages
from dbray.planning.packing import evened, is_packed
from dbray.planning.plan import Plan
from dbray.records.packs import PackChoice, read_pack
from dbray.run.recorder import Recorder
from dbray.spec.canon import digest_json


def settle_pack(plan: Plan, recorder: Recorder) -> Plan:
    """Return the plan with the number of slots of its lanes: given, recorded, or measured now.

    Raises:
        BaseError: the base cannot be loaded.
        LaneLost: the process that measures died.
        StoreError: the choice cannot be recorded.
    """
    job = plan.job
    if job.resources.pack != "auto":
        return plan
    # The steps of a second stage are not measured, so that only one subject trains at a time.
    is_one = len(list(trained_stages(job, plan.base))) == 1
    packs = is_one and is_packed(job.recipe, job.resources)
    num_slots = _chosen(plan, recorder).num_slots if packs else 1
    resources = job.resources.model_copy(update={"pack": num_slots})
    return replace(plan, job=job.model_copy(update={"resources": resources}))


def _chosen(plan: Plan, recorder: Recorder) -> PackChoice:
    journal, num_lanes = recorder.journal, recorder.tally.lanes
    num_subjects = len(plan.to_train)
    inputs = digest_json({"base": plan.base.digest, "recipe": plan.job.recipe.identity()})
    known = read_pack(journal.store, journal.job_id)
    if known is not None and known.inputs == inputs:
        return known
    with recorder.phase("packing"):
        best, seconds = choose_pack(plan, num_lanes)
    num_slots = evened(best, num_subjects, num_lanes)
    choice = PackChoice(inputs=inputs, num_slots=num_slots, seconds=seconds)
    journal.write_pack(choice)
    recorder.watch.note(f"{num_slots} subjects train together in each lane")
    return choice
