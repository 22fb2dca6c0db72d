"""Wrong and ablated variants of the library's functions, each with the arguments and shapes of what it replaces.

What each is and does to the result is said once, in the table of `condinst_edu.teach.deviations`.
"""
