"""Two small recordings that ship with linscan, for the demo, the examples and the tests.

Where they come from and under which terms is in ``README.md`` beside the files.
"""

from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent


def load_ecg() -> tuple[np.ndarray, float, str]:
    """One minute of an electrocardiogram whose baseline wanders: MIT-BIH record 208, lead MLII.

    Returns
    -------
    signal : ndarray, shape (21600,), float64
        The voltage in mV.
    fs : float
        360.0, the sampling rate in Hz.
    description : str
        One line that says what it is.

    Notes
    -----
    Minutes 21:35 to 22:35 of the record: about a hundred beats, of which some are premature ventricular ones (wide
    and deep), on a baseline that breathing and movement shift by more than a millivolt.

    References
    ----------
    .. [1] G. B. Moody and R. G. Mark, "The impact of the MIT-BIH Arrhythmia Database", IEEE Engineering in Medicine
       and Biology 20(3), 45-50, 2001, doi:10.1109/51.932724.
    .. [2] A. L. Goldberger et al., "PhysioBank, PhysioToolkit, and PhysioNet", Circulation 101(23), e215-e220, 2000,
       doi:10.1161/01.CIR.101.23.e215.

    Examples
    --------
    >>> from linscan.data import load_ecg
    >>> signal, fs, description = load_ecg()
    >>> signal.shape, fs, description
    ((21600,), 360.0, 'electrocardiogram, MIT-BIH record 208, lead MLII')
    """
    with np.load(_HERE / "ecg.npz") as file:
        signal = file["microvolts"] / 1000.0
    return signal, 360.0, "electrocardiogram, MIT-BIH record 208, lead MLII"


def load_co2() -> tuple[np.ndarray, float, str]:
    """Forty-four years of weekly carbon dioxide at Mauna Loa: a trend with a yearly cycle on it.

    Returns
    -------
    signal : ndarray, shape (2284,), float64
        Mole fraction in ppm, one value a week from 29 March 1958 to 29 December 2001.
    fs : float
        365.25 / 7, the samples per year.
    description : str
        One line that says what it is.

    Notes
    -----
    Of the 2284 weeks, 59 have no measurement; they are filled here by linear interpolation between their neighbours.
    The file keeps them blank.

    References
    ----------
    .. [1] C. D. Keeling and T. P. Whorf, "Atmospheric CO2 concentrations derived from flask air samples at sites in
       the SIO network", Carbon Dioxide Information Analysis Center, Oak Ridge National Laboratory, 2004.

    Examples
    --------
    >>> from linscan.data import load_co2
    >>> signal, fs, description = load_co2()
    >>> signal.shape, round(fs, 2), description
    ((2284,), 52.18, 'weekly carbon dioxide at Mauna Loa, 1958 to 2001')
    """
    ppm = np.genfromtxt(_HERE / "co2.csv", delimiter=",", skip_header=1, usecols=[1])
    week, known = np.arange(ppm.size), np.isfinite(ppm)
    signal = np.interp(week, week[known], ppm[known])
    return signal, 365.25 / 7, "weekly carbon dioxide at Mauna Loa, 1958 to 2001"
