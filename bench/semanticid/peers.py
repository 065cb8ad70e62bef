"""Residual k-means by others, for BenchmarkSemanticIDsPeers.

    peers.py constrained|faiss FILE ROWS WIDTH CODES LEVELS

FILE holds ROWS x WIDTH float32. Prints, for each level, the seconds so far and the
distortion: the mean squared distance of a row from its centroid.
"""
import sys
import time

import numpy as np

which, path, n, d, k, levels = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
x = np.fromfile(path, dtype=np.float32).reshape(n, d)
taken = 0.0
for level in range(levels):
    start = time.perf_counter()
    if which == "constrained":
        from k_means_constrained import KMeansConstrained
        m = KMeansConstrained(n_clusters=k, size_min=n // k, size_max=-(-n // k), n_init=1, max_iter=25, tol=1e-3, random_state=1)
        assign = m.fit_predict(x)
    else:
        import faiss
        m = faiss.Kmeans(d, k, niter=25, seed=1)
        m.train(x)
        assign = m.index.search(x, 1)[1][:, 0]
    centroids = np.zeros((k, d), np.float64)
    np.add.at(centroids, assign, x)
    centroids /= np.maximum(np.bincount(assign, minlength=k), 1)[:, None]
    taken += time.perf_counter() - start
    x = x - centroids[assign].astype(np.float32)
    print(f"{taken:.2f} {(x.astype(np.float64) ** 2).sum(1).mean():.6f}", flush=True)
