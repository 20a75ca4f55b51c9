"""The paper in four files: the teacher, the heads, the student, and the pipeline that runs them."""
