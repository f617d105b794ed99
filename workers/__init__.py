"""What is done, on every rank: domains to token stores, schedule, batches, ZeRO steps, evaluation, checkpoints.

Nothing here decides a share and nothing here imports `orchestrator`; decisions arrive through
`workers.contracts.WeightsSource`.
"""
