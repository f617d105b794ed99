"""What runs on every rank: token stores, schedule, batches, ZeRO steps, evaluation, checkpoints.

Nothing here decides a share or imports `orchestrator`; decisions arrive through
`workers.contracts.WeightsSource`.
"""
