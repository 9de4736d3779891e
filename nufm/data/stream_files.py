"""Files of events with several streams: one HDF5 file of many events, or one npz file per event.

**HDF5**, layout 1. n events of one detector (``nufm/data/detectors/<detector>.yaml``); S stands for a stream of it, N
for the hits of all events, T for the tracks of all events:

    attributes of the file          layout = 1, detector, producer ("simulated by nufm" | what else), version, spec
                                    (JSON), seed, stream (0 train, 1 val, 2 test), first (index of the first event in
                                    that stream)
    hits/S/index        (N, 3)      integer, voxel within its module
    hits/S/module       (N,)        integer; may be absent if the stream has one module
    hits/S/charge       (N,)        float32, MeV
    hits/S/ghost        (N,)        int8: 0 real, 1 ghost, 2 not a ghost but unmatched              } absent where there
    hits/S/hierarchy    (N, 3)      float16 or float32: shares of HIERARCHY_NAMES, 0 for ghosts     } is no truth
    hits/S/category     (N, 3)      the same for CATEGORY_NAMES                                     }
    hits/S/offsets      (n+1,)      int64: event e holds the rows offsets[e]:offsets[e+1]
    matrices/S          (n, ...)    float32, MeV; ECAL (n, 5, 5)
    tracks/S/features   (T, F)      float32, all columns of the fit; muon spectrometer F = 11: charge, n_points, px,
                                    py, pz, p (GeV/c), chi2, ndof, p_value, error_1, error_2. The reader keeps tracks
                                    with at least 3 points and chi2 > 0, and of them the columns that the detector
                                    names. A file may hold just these columns instead.
    tracks/S/offsets    (n+1,)      int64
    present/S           (n,)        bool: the stream was read out in this event; absent = in all of them. A stream
                                    whose group is absent is missing in every event.
    truth/<name>        (n, ...)    names, shapes and units of ``nufm.data.streams.TRUTH``: flavour, charm, particle
                                    (int64, -1 unknown); visible, jet, lepton (n, 3) GeV/c; vertex (n, 3) mm from the
                                    detector's origin; neutrino_energy GeV (float32, NaN unknown). Any may be absent.
    extra               (n, E)      float32, hand-crafted numbers; optional
    identity/run        (n,)        int64, and identity/event likewise; optional
    group               (n,)        int64, never falling: events with equal numbers belong together; optional

Any compression that HDF5 brings itself (gzip, lzf) may be used; chunks of about 16,384 rows keep reading one event
cheap.

A writer takes the events one by one as *records*: a dictionary from the path of a data set to this event's array,

    {"hits/cal3d/index": (N, 3), "hits/cal3d/charge": (N,), ..., "matrices/ecal": (5, 5),
     "tracks/muon/features": (T, 11), "truth/flavour": 3, "truth/vertex": (3,), ...}

without offsets and ``present``, which the writer makes: rows below ``hits/`` and ``tracks/`` are put end to end, all
else is stacked. A record without any path of a stream that others have means that the stream is missing in that event.
"""
