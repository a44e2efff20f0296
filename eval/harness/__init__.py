"""What the experiments and the demo share: real text, workloads, client, servers, reports."""
