"""One network input per person: from boxes to crops, and from the crops' heatmaps to poses in the frame.

Three pictures, integers at pixel centres in each: the frame; a crop, which the network sees; a heatmap.
A crop's first and last pixel centres lie on the edges of its region of the frame, and on the first and last
pixel centres of its heatmap ("The Devil is in the Details", CVPR 2020: unbiased data processing).
"""
