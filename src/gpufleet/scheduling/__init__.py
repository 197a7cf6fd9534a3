"""Who runs where: filters, scores, gangs, preemption and their explanation."""
