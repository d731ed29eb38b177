"""What a course needs: ``answers`` checks the chapters' exercises, ``assignment`` the marked one, ``grading`` a folder of them.

``comparing`` tells right from wrong for both. Students meet them through :func:`sdap_lite.exercises.check`, lecturers through
``python -m sdap_lite grade``.
"""
